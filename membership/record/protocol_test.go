package record

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/test/protocol"
)

// TestProtocolVectors uses the keys, the delegation and the certificate of the
// vectors "keys" in PROTOCOL.md.
func TestProtocolVectors(t *testing.T) {
	root, err := keys.RootPrivateFromRaw32(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := keys.IssuerPrivateFromRaw32(bytes.Repeat([]byte{2}, 32))
	if err != nil {
		t.Fatal(err)
	}
	node, err := keys.NodePrivateFromRaw32(bytes.Repeat([]byte{3}, 32))
	if err != nil {
		t.Fatal(err)
	}
	noise, err := keys.NoisePrivateFromRaw32(bytes.Repeat([]byte{4}, 32))
	if err != nil {
		t.Fatal(err)
	}
	trust := keys.Trust{Cluster: ids.ClusterID(bytes.Repeat([]byte{7}, 16)), Root: root.Public()}
	identity := node.Public()
	from := begin.Add(time.Hour)
	credential := keys.Credential{
		Delegation: keys.SignDelegation(root, keys.Delegation{Cluster: trust.Cluster, Issuer: issuer.Public(),
			MaxLifetime: 90 * 24 * time.Hour, NotBefore: begin, NotAfter: begin.Add(3650 * 24 * time.Hour)}),
		Cert: keys.SignCert(issuer, keys.Cert{Cluster: trust.Cluster, Serial: 2, Identity: identity, Noise: noise.Public(),
			Hostname: "host-a", Inner: identity.ID().InnerAddr(), Token: keys.TokenID{0, 0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77},
			NotBefore: from, NotAfter: from.Add(30 * 24 * time.Hour), Issuer: issuer.Public()}),
	}
	blue := ids.DeriveVNI("blue")
	addr := netip.MustParseAddr("10.77.0.5")
	raw := sign(t, Node{
		ID: identity.ID(), Seq: 1001,
		Underlay: []Underlay{{Control: netip.MustParseAddrPort("198.18.0.1:7946"), MTU: 1500}},
		Tunnels: []Tunnel{{Epoch: 1, Instance: 1, Wire: WireWireGuard, Port: 51871,
			Public: keys.TunnelPublic(bytes.Repeat([]byte{9}, 32))}},
		Networks: []Network{{Name: "blue", VNI: blue, Encrypted: true, VTEPPort: 4789,
			Subnets: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")},
			Blocks:  []netip.Prefix{netip.MustParsePrefix("10.77.0.0/26")}}},
		Attached: []Attached{{VNI: blue, MAC: ids.EndpointMAC(blue, addr), Addrs: []netip.Addr{addr}}},
	}, node)
	e := Entry{Credential: credential, Record: raw}
	var set Set
	empty := set.Digest()
	if _, err := set.Merge(trust, from.Add(time.Hour), e); err != nil {
		t.Fatal(err)
	}
	digest := set.Digest()
	protocol.Check(t, "record", map[string][]byte{
		"record":       raw,
		"entry_header": AppendEntry(nil, e)[:entryHeader],
		"head":         AppendHead(nil, set.Summary()[0]),
		"digest":       digest[:],
		"digest_empty": empty[:],
		"final":        sign(t, Final(identity.ID(), begin.Add(24*time.Hour)), node),
	}, *update)
}
