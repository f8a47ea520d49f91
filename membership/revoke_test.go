package membership

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// revocation makes the item by an issuer of its own.
func (l *lab) revocation(node ids.NodeID) *item.Item {
	l.t.Helper()
	it, err := item.SignRevocation(time.Now(), l.auth.Trust, l.signer("of revocations"),
		item.Revocation{Node: node, Reason: "test", Created: time.Now().Truncate(time.Second)})
	if err != nil {
		l.t.Fatal(err)
	}
	return it
}

// expelled reports whether a snapshot shows a node as revoked, and as nothing
// else.
func expelled(id ids.NodeID) func(Snapshot) bool {
	return func(s Snapshot) bool {
		_, member := s.Member(id)
		for _, r := range s.Revoked {
			if r.Node == id {
				return !member
			}
		}
		return false
	}
}

func (l *lab) issuing(n int) []*node {
	l.t.Helper()
	nodes := []*node{l.start(0, l.signs(l.signer("a")))}
	for i := 1; i < n; i++ {
		nodes = append(nodes, l.start(i))
	}
	for i, n := range nodes {
		n.Publish(content(i, 0))
	}
	converge(l.t, nodes, n)
	return nodes
}

func TestRevoke(t *testing.T) {
	l := newLab(t)
	nodes := l.issuing(5)
	victim := nodes[4]
	before := time.Now().Truncate(time.Second)
	r, err := nodes[0].Revoke(context.Background(), item.Revocation{Node: victim.self, Name: "node4", Reason: "stolen"})
	if err != nil || r.Node != victim.self || r.Reason != "stolen" || r.Created.Before(before) {
		t.Fatalf("%+v, %v", r, err)
	}
	if !expelled(victim.self)(nodes[0].Snapshot()) {
		t.Error("the issuer does not show it when Revoke returns")
	}
	for _, n := range nodes[:4] {
		n.until("the victim is out", expelled(victim.self))
		n.until("four members", whole(4))
		n.until("all have it", func(s Snapshot) bool {
			for _, m := range s.Members {
				if !m.SameItems {
					return false
				}
			}
			return true
		})
	}
	// It talks on, and nobody takes it.
	victim.Publish(content(4, 1))
	if _, err := victim.transport.Call(context.Background(), nodes[1].self, giveRequest([32]byte{}, nil)); !errors.Is(err, noisenet.ErrRefused) {
		t.Errorf("call by the victim: %v", err)
	}
	if _, err := nodes[1].Pair(context.Background(), victim.self, nil); !errors.Is(err, noisenet.ErrRefused) {
		t.Errorf("call to the victim: %v", err)
	}
	// Once more changes nothing; other nodes may not.
	again, err := nodes[0].Revoke(context.Background(), item.Revocation{Node: victim.self, Reason: "another"})
	if err != nil || again != r {
		t.Errorf("again: %+v, %v", again, err)
	}
	if _, err := nodes[1].Revoke(context.Background(), item.Revocation{Node: nodes[2].self}); !errors.Is(err, ErrNotIssuer) {
		t.Errorf("by a node without issuer key: %v", err)
	}
	if _, err := nodes[0].Revoke(context.Background(), item.Revocation{Node: nodes[0].self}); !errors.Is(err, ErrRevokeSelf) {
		t.Errorf("of itself: %v", err)
	}
	if n := len(nodes[1].Snapshot().Revoked); n != 1 {
		t.Errorf("%d nodes are revoked", n)
	}
}

// TestRevokedStaysOut: neither a restart with an older cache, nor a record that a
// colluding member relays, nor a new certificate brings a revoked node back.
func TestRevokedStaysOut(t *testing.T) {
	l := newLab(t)
	nodes := l.issuing(3)
	stored, cached := &memoryItems{}, &memoryCache{}
	keep := l.start(3, func(o *Options) { o.ItemCache, o.Cache = stored, cached })
	keep.Publish(content(3, 0))
	victim := l.start(4)
	victim.Publish(content(4, 0))
	all := append(nodes, keep, victim)
	converge(t, all, 5)
	entry := victim.view.Load().set.Get(victim.self).Entry
	if _, err := nodes[0].Revoke(context.Background(), item.Revocation{Node: victim.self}); err != nil {
		t.Fatal(err)
	}
	for _, n := range all[:4] {
		n.until("the victim is out", expelled(victim.self))
	}
	keep.stop()
	cached.entries = append(cached.entries, entry) // as it was before
	l.run(keep)
	keep.Publish(content(3, 0))
	keep.until("it is still out", func(s Snapshot) bool { return len(s.Members) == 4 && expelled(victim.self)(s) })

	// A member that does not care about revocations relays a newer record, with
	// a newer certificate of the same key.
	cert := l.identity(4).Cert
	cert.NotBefore = time.Now().Truncate(time.Second)
	cert.NotAfter = cert.NotBefore.Add(time.Hour)
	cert.Serial += 100
	renewed, err := l.auth.Certify(cert)
	if err != nil {
		t.Fatal(err)
	}
	n := content(4, 7)
	n.ID, n.Seq = victim.self, 1000
	raw, err := record.Sign(n, l.identity(4).Node)
	if err != nil {
		t.Fatal(err)
	}
	r := l.rogue(8, nil)
	for range 20 {
		if err := r.push(nodes[1].self, record.Entry{Credential: renewed, Record: raw}); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range all[:4] {
		if !expelled(victim.self)(n.Snapshot()) {
			t.Errorf("node %d took the victim back", n.i)
		}
	}
	if got := l.log.count("sent an invalid record"); got != 0 {
		t.Errorf("a member that has not heard of a revocation is accused: %d lines", got)
	}
}

// TestRevocationInPartition: who is cut off applies it when healed, and so does
// a node that was down.
func TestRevocationInPartition(t *testing.T) {
	l := newLab(t)
	nodes := l.issuing(4)
	victim, away := nodes[3], nodes[2]
	l.net.setBroken(func(from, to ids.NodeID) bool {
		half := func(id ids.NodeID) bool { return id == victim.self || id == away.self }
		return half(from) != half(to)
	})
	if _, err := nodes[0].Revoke(context.Background(), item.Revocation{Node: victim.self}); err != nil {
		t.Fatal(err)
	}
	nodes[1].until("the victim is out", expelled(victim.self))
	if expelled(victim.self)(away.Snapshot()) {
		t.Fatal("the cut lets items pass")
	}
	l.net.setBroken(nil)
	away.until("the victim is out after healing", expelled(victim.self))
	converge(t, nodes[:3], 3)
}

// TestRevocationBeforeTheDisk: a disk that fails, or hangs, does not keep a
// revoked node in; and what could not be written is written later.
func TestRevocationBeforeTheDisk(t *testing.T) {
	l := newLab(t)
	disk := &hangingItems{hang: make(chan struct{}), wrote: make(chan struct{}, 100)}
	n := l.start(0, func(o *Options) { o.ItemCache = disk })
	n.Publish(content(0, 0))
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	gone := l.identity(7).ID
	r := l.rogue(8, nil)
	given := make(chan error, 1)
	go func() { given <- r.give(n.self, l.revocation(gone).Raw) }()
	n.until("revoked while the disk hangs", func(s Snapshot) bool { return len(s.Revoked) == 1 })
	if !n.refuse(gone) {
		t.Error("the transport does not refuse it")
	}
	close(disk.hang)
	if err := <-given; err != nil {
		t.Error(err)
	}
	select {
	case <-disk.wrote:
	default:
		t.Error("the answer came before the disk had it")
	}
}

// hangingItems is an ItemCache whose writes wait.
type hangingItems struct {
	memoryItems
	hang  chan struct{}
	wrote chan struct{}
}

func (h *hangingItems) Save(raws [][]byte) error {
	<-h.hang
	h.wrote <- struct{}{}
	return h.memoryItems.Save(raws)
}

// TestForgedRevocation: no member can revoke another.
func TestForgedRevocation(t *testing.T) {
	l := newLab(t)
	nodes := l.issuing(3)
	r := l.rogue(8, nil)
	good := l.revocation(nodes[2].self)
	created := len(keys.DomainItem) + 16 + 2 + len(ids.NodeID{}) + 32 + 8 // where the time stands
	for i := range good.Raw {
		raw := append([]byte(nil), good.Raw...)
		raw[i] ^= 1
		// One that is from the future then is left out, without a word.
		if err := r.give(nodes[1].self, raw); err == nil && (i < created || i >= created+8) {
			t.Errorf("byte %d flipped: accepted", i)
		}
	}
	// By the member's own key, in the place of an issuer's.
	unsigned := good.Raw[:len(good.Raw)-keys.SignatureSize]
	sig := r.id.Node.Sign(keys.DomainItem, unsigned[len(keys.DomainItem):])
	if err := r.give(nodes[1].self, append(append([]byte(nil), unsigned...), sig[:]...)); err == nil {
		t.Error("a member's signature is accepted")
	}
	for _, n := range nodes {
		if s := n.Snapshot(); len(s.Revoked) != 0 || len(s.Members) != 3 {
			t.Errorf("node %d: %+v", n.i, s.Revoked)
		}
	}
}

// TestRevokedDoesNotJoin: a token does not help a revoked identity.
func TestRevokedDoesNotJoin(t *testing.T) {
	l := newLab(t)
	desk := &admissionDesk{}
	n := l.start(0, func(o *Options) { l.signs(l.signer("a"))(o); o.Admission = desk })
	n.Publish(content(0, 0))
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	bad, good := l.identity(5), l.identity(6)
	if _, err := n.Revoke(context.Background(), item.Revocation{Node: bad.ID}); err != nil {
		t.Fatal(err)
	}
	if _, err := n.admission().Issue(context.Background(), addrOf(5), keys.TokenID{1}, keys.JoinRequest{Identity: bad.Node.Public()}); !errors.Is(err, ErrRevoked) {
		t.Errorf("revoked identity: %v", err)
	}
	if _, err := n.admission().Issue(context.Background(), addrOf(6), keys.TokenID{1}, keys.JoinRequest{Identity: good.Node.Public()}); err != nil || desk.issued != 1 {
		t.Errorf("other identity: %v, %d issued", err, desk.issued)
	}
	if l.log.count("a node that is out tried to join again") != 1 {
		t.Error("nobody is told")
	}
}

// admissionDesk admits everybody.
type admissionDesk struct{ issued int }

func (d *admissionDesk) JoinKeys(uint32) []noisenet.JoinKey { return nil }

func (d *admissionDesk) Issue(context.Context, netip.AddrPort, keys.TokenID, keys.JoinRequest) (keys.JoinAnswer, error) {
	d.issued++
	return keys.JoinAnswer{}, nil
}

// TestOwnRevocation: a node that hears that it was thrown out says so.
func TestOwnRevocation(t *testing.T) {
	l := newLab(t)
	n := l.start(0)
	n.Publish(content(0, 0))
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	r := l.rogue(8, nil)
	if err := r.give(n.self, l.revocation(n.self).Raw); err != nil {
		t.Fatal(err)
	}
	n.until("its own revocation", func(s Snapshot) bool { return len(s.Revoked) == 1 && len(s.Members) == 1 })
	l.waitLogs("this node is revoked", 1)
}
