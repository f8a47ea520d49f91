package item

import (
	"bytes"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/test/protocol"
)

// rawSigner signs with a given issuer key and delegation.
type rawSigner struct {
	key        keys.IssuerPrivate
	delegation []byte
}

func (s rawSigner) Delegation() []byte { return s.delegation }

func (s rawSigner) SignItem(_ time.Time, _ string, _ uint64, unsigned []byte) ([]byte, error) {
	sig := s.key.Sign(keys.DomainItem, unsigned[len(keys.DomainItem):])
	return append(unsigned, sig[:]...), nil
}

func (s rawSigner) SignHeartbeat(now time.Time, unsigned []byte) ([]byte, error) {
	return s.SignItem(now, "", 0, unsigned)
}

// TestProtocolVectors uses the keys and the delegation of the vectors "keys" in
// PROTOCOL.md.
func TestProtocolVectors(t *testing.T) {
	root, err := keys.RootPrivateFromRaw32(bytes.Repeat([]byte{1}, 32))
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := keys.IssuerPrivateFromRaw32(bytes.Repeat([]byte{2}, 32))
	if err != nil {
		t.Fatal(err)
	}
	trust := keys.Trust{Cluster: ids.ClusterID(bytes.Repeat([]byte{7}, 16)), Root: root.Public()}
	s := rawSigner{issuer, keys.SignDelegation(root, keys.Delegation{Cluster: trust.Cluster, Issuer: issuer.Public(),
		MaxLifetime: 90 * 24 * time.Hour, NotBefore: begin, NotAfter: begin.Add(3650 * 24 * time.Hour)})}
	it, err := SignTarget(noon, trust, s, Target{Epoch: 7, Driver: DriverIPsec, Reason: ReasonManual, Created: noon})
	if err != nil {
		t.Fatal(err)
	}
	out, err := SignRevocation(noon, trust, s, Revocation{Node: ids.NodeID(bytes.Repeat([]byte{9}, 16)), Name: "db-1", Reason: "stolen", Created: noon})
	if err != nil {
		t.Fatal(err)
	}
	revoked, err := IssuerRevocation{Issuer: issuer.Public(), Target: 7, Access: 2, Reason: "stolen", Created: noon}.Unsigned(trust)
	if err == nil {
		revoked, err = SignUnsigned(root, revoked)
	}
	if err != nil {
		t.Fatal(err)
	}
	byRoot, err := SignRoot(trust.Cluster, root, Content{Slot: Slot{250, "key"}, Version: 3, Created: noon, Body: []byte("body")})
	if err != nil {
		t.Fatal(err)
	}
	first, err := FloorContent(FirstFloor(), 1, noon)
	if err != nil {
		t.Fatal(err)
	}
	floor, err := SignRoot(trust.Cluster, root, first)
	if err != nil {
		t.Fatal(err)
	}
	base, err := Verify(trust, noon, floor)
	if err != nil {
		t.Fatal(err)
	}
	var floors Set
	if _, err := floors.Insert(base); err != nil {
		t.Fatal(err)
	}
	raised, err := floors.SignFloor(noon, trust, s, 2)
	if err != nil {
		t.Fatal(err)
	}
	beat, err := SignHeartbeat(noon, trust, s, 0, [32]byte(bytes.Repeat([]byte{0xd6}, 32)))
	if err != nil {
		t.Fatal(err)
	}
	var set Set
	empty := set.Digest()
	if _, err := set.Insert(it); err != nil {
		t.Fatal(err)
	}
	digest := set.Digest()
	protocol.Check(t, "items", map[string][]byte{
		"target":       it.Raw,
		"revocation":   out.Raw,
		"issuer":       revoked,
		"root_item":    byRoot,
		"floor_root":   floor,
		"floor":        raised.Raw,
		"heartbeat":    beat.Raw,
		"head":         AppendHead(nil, it.Head()),
		"digest":       digest[:],
		"digest_empty": empty[:],
	}, *update)
}
