package keys

import (
	"fmt"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// IssuerRequest asks the holder of the root key to delegate to an issuer key. It
// carries the key's own signature, so that what arrives is what was sent, and
// nobody has a key delegated that is not theirs.
type IssuerRequest struct {
	Cluster ids.ClusterID
	Issuer  IssuerPublic
	Node    ids.NodeID // where the issuer will run; for people
}

// SignIssuerRequest returns the signed bytes: "so-isreq-v1" || cluster (16) ||
// issuer key (32) || node ID (16) || signature by the issuer key.
func SignIssuerRequest(issuer IssuerPrivate, cluster ids.ClusterID, node ids.NodeID) []byte {
	b := IssuerRequest{Cluster: cluster, Issuer: issuer.Public(), Node: node}.fields()
	sig := issuer.Sign(domainIssuerRequest, b)
	return append(signedBytes(domainIssuerRequest, b), sig[:]...)
}

func (r IssuerRequest) fields() []byte {
	b := make([]byte, 0, 16+32+16+SignatureSize)
	b = append(b, r.Cluster[:]...)
	b = append(b, r.Issuer[:]...)
	return append(b, r.Node[:]...)
}

// ParseIssuerRequest decodes raw and checks its signature. Whether the key is to
// be trusted is for the operator to decide.
func ParseIssuerRequest(raw []byte) (IssuerRequest, error) {
	p := reader{what: "issuer request", b: raw}
	var r IssuerRequest
	p.domain(domainIssuerRequest)
	r.Cluster = ids.ClusterID(p.take(16, "cluster"))
	r.Issuer = p.key("issuer key")
	r.Node = ids.NodeID(p.take(16, "node"))
	p.signature()
	if err := p.done(); err != nil {
		return IssuerRequest{}, err
	}
	if !r.Issuer.Verify(domainIssuerRequest, body(raw, domainIssuerRequest), trailer(raw)) {
		return IssuerRequest{}, fmt.Errorf("issuer request: %w", ErrBadSignature)
	}
	return r, nil
}
