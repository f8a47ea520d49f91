package keys

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"maps"
	"os"
	"path/filepath"
	"testing"

	"github.com/secure-overlay/secure-overlay/test/protocol"
)

var update = flag.Bool("update", false, "rewrite testdata/vectors.json and the vectors in PROTOCOL.md")

// vectors is testdata/vectors.json: inputs, and the bytes that every
// implementation must make of them. All binary values are hexadecimal.
type vectors struct {
	Note   string            `json:"note"`
	Seeds  map[string]string `json:"seeds"`
	Inputs map[string]any    `json:"inputs"`
	Out    map[string]string `json:"outputs"`
}

func makeVectors(t *testing.T) vectors {
	t.Helper()
	c := fixedCluster(t)
	h := func(b []byte) string { return hex.EncodeToString(b) }
	root, issuer, node, noise := c.root.Public(), c.issuer.Public(), c.node.Public(), c.noise.Public()
	cred := c.credential()
	inner := c.cert.Inner.As16()
	id := c.cert.ID()
	var joinKey string
	c.secret.JoinKey().Expose(func(raw []byte) { joinKey = h(raw) })
	return vectors{
		Note: "Fixed seeds; layouts in PROTOCOL.md. Private keys of this file protect nothing.",
		Seeds: map[string]string{
			"root_private": h(repeated(1)), "issuer_private": h(repeated(2)), "node_private": h(repeated(3)),
			"noise_private": h(repeated(4)), "access_key": h(repeated(5)), "token_secret": h(repeated(6)),
		},
		Inputs: map[string]any{
			"cluster": h(c.trust.Cluster[:]), "delegation_max_lifetime": int64(c.delegation.MaxLifetime.Seconds()),
			"delegation_not_before": c.delegation.NotBefore.Unix(), "delegation_not_after": c.delegation.NotAfter.Unix(),
			"serial": c.cert.Serial, "hostname": c.cert.Hostname, "roles": c.cert.Roles, "token_id": c.token.ID.String(),
			"cert_not_before": c.cert.NotBefore.Unix(), "cert_not_after": c.cert.NotAfter.Unix(),
			"seeds": c.token.Seeds, "handshake_hash": h(c.handshake[:]),
		},
		Out: map[string]string{
			"root_public": h(root[:]), "issuer_public": h(issuer[:]), "node_public": h(node[:]), "noise_public": h(noise[:]),
			"node_public_text": node.String(), "node_fingerprint": node.Fingerprint(),
			"node_id": h(id[:]), "node_id_text": id.String(), "inner_address": h(inner[:]),
			"join_key": joinKey, "token_text": c.token.Encode(),
			"delegation": h(cred.Delegation), "certificate": h(cred.Cert),
			"join_request": h(c.request.Encode()), "join_answer": h(c.answer().Encode()),
		},
	}
}

func TestVectors(t *testing.T) {
	v := makeVectors(t)
	all := maps.Clone(v.Out)
	maps.Copy(all, v.Seeds)
	protocol.Check(t, "keys", all, *update)
	got, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	path := filepath.Join("testdata", "vectors.json")
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("bytes on the wire have changed; a new version needs a new domain string. Have:\n%s", got)
	}
}

// TestVectorsDecode reads the file as another implementation would.
func TestVectorsDecode(t *testing.T) {
	b, err := os.ReadFile(filepath.Join("testdata", "vectors.json"))
	if err != nil {
		t.Fatal(err)
	}
	var v vectors
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	raw := func(name string) []byte {
		b, err := hex.DecodeString(v.Out[name])
		if err != nil || len(b) == 0 {
			t.Fatalf("%s: %d bytes, %v", name, len(b), err)
		}
		return b
	}
	c := fixedCluster(t)
	tok, err := ParseToken(v.Out["token_text"])
	same(t, "token", tok, err, c.token)
	ans, err := ParseJoinAnswer(raw("join_answer"))
	same(t, "join answer", ans, err, c.answer())
	cert, err := tok.Trust().VerifyMember(ans.Credential, c.now())
	same(t, "certificate", cert, err, c.cert)
	cert, err = tok.Trust().VerifyMember(Credential{raw("delegation"), raw("certificate")}, c.now())
	same(t, "certificate", cert, err, c.cert)
	req, err := ParseJoinRequest(raw("join_request"))
	same(t, "join request", req, err, c.request)
	if err := req.VerifyProof(c.handshake); err != nil {
		t.Error(err)
	}
}
