package membership

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// memoryKeys is an AccessKeeper.
type memoryKeys struct {
	mu   sync.Mutex
	list []keys.AccessKey
	err  error
	hang chan struct{} // a read waits until it is closed; nil: it does not
}

func (m *memoryKeys) AccessKeys(time.Time) ([]keys.AccessKey, error) {
	m.mu.Lock()
	hang := m.hang
	m.mu.Unlock()
	if hang != nil {
		<-hang
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return append([]keys.AccessKey(nil), m.list...), nil
}

func (m *memoryKeys) ReplaceAccess(key keys.AccessKey, _ time.Time) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err != nil {
		return m.err
	}
	m.list = append([]keys.AccessKey{key.Clone()}, m.list...)
	return nil
}

func (m *memoryKeys) current() keys.AccessKey {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.list[0]
}

// keyed gives a node the cluster's first access key.
func keyed(m *memoryKeys) func(*Options) {
	return func(o *Options) { m.list, o.Keys = []keys.AccessKey{o.Identity.Access}, m }
}

// TestAccessKeyFollowsRevocation: whoever is left gets a new access key, also who
// was away; the one that was thrown out does not.
func TestAccessKeyFollowsRevocation(t *testing.T) {
	l := newLab(t)
	stored := make([]*memoryKeys, 5)
	for i := range stored {
		stored[i] = &memoryKeys{}
	}
	nodes := []*node{l.start(0, l.signs(l.signer("a")), keyed(stored[0]))}
	for i := 1; i < 5; i++ {
		nodes = append(nodes, l.start(i, keyed(stored[i])))
	}
	for i, n := range nodes {
		n.Publish(content(i, 0))
	}
	converge(t, nodes, 5)
	first := stored[0].current()
	away, victim := nodes[3], nodes[4]
	away.stop()
	for round := 1; round <= 2; round++ {
		if round == 1 {
			if _, err := nodes[0].Revoke(context.Background(), item.Revocation{Node: victim.self}); err != nil {
				t.Fatal(err)
			}
		} else if _, err := nodes[0].Revoke(context.Background(), item.Revocation{Node: l.identity(9).ID}); err != nil {
			t.Fatal(err)
		}
		want, ok := nodes[0].access()
		if !ok || want.Version != uint64(round) || want.Commitment != stored[0].current().Commitment() {
			t.Fatalf("round %d: the cluster says %+v", round, want)
		}
		for i := 1; i < 3; i++ {
			nodes[i].until("the new key", func(Snapshot) bool { return stored[i].current().Commitment() == want.Commitment })
		}
	}
	l.run(away)
	away.Publish(content(3, 0))
	away.until("the new key, after its return", func(Snapshot) bool { return stored[3].current().Equal(stored[0].current()) })
	if !stored[4].current().Equal(first) {
		t.Error("the victim got a new key")
	}
}

// TestAccessKeyNotTakenFromAnybody: only the key that an issuer has named is used,
// and a node without it is not asked in vain for ever.
func TestAccessKeyNotTakenFromAnybody(t *testing.T) {
	l := newLab(t)
	stored := &memoryKeys{}
	n := l.start(0, keyed(stored))
	n.Publish(content(0, 0))
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	good, bad := key32(t, 1), key32(t, 2)
	var served keys.AccessKey
	r := l.rogue(8, func(_ context.Context, _ noisenet.Peer, req []byte) ([]byte, error) {
		if req[0] != kindAccess {
			return nil, errors.New("not now")
		}
		out := []byte{kindAccess | kindAnswer, version}
		served.Expose(func(raw []byte) { out = append(out, raw...) })
		return out, nil
	})
	it, err := item.SignAccess(time.Now(), l.auth.Trust, l.signer("a"), item.Access{Version: 1, Commitment: good.Commitment(), Created: time.Now().Truncate(time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.give(n.self, it.Raw); err != nil {
		t.Fatal(err)
	}
	before := stored.current()
	served = bad
	if err := n.fetchAccess(context.Background(), r.id.ID); err == nil || !stored.current().Equal(before) {
		t.Errorf("another key is taken: %v", err)
	}
	served = good
	if err := n.fetchAccess(context.Background(), r.id.ID); err != nil || !stored.current().Equal(good) {
		t.Errorf("the key that was named is not taken: %v", err)
	}
}

// TestAccessKeysOnAHangingDisk: while the store waits for its disk, the node takes
// in what the others say.
func TestAccessKeysOnAHangingDisk(t *testing.T) {
	l := newLab(t)
	stored, hang := &memoryKeys{}, make(chan struct{})
	n := l.start(0, keyed(stored))
	n.Publish(content(0, 0))
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	stored.mu.Lock()
	stored.hang = hang
	stored.mu.Unlock()
	defer close(hang)
	it, err := item.SignAccess(time.Now(), l.auth.Trust, l.signer("a"), item.Access{Version: 1, Commitment: key32(t, 1).Commitment(), Created: time.Now().Truncate(time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	r := l.rogue(8, nil)
	if err := r.give(n.self, it.Raw); err != nil {
		t.Fatal(err)
	}
	for i := range 5 {
		gone := l.identity(20 + i).ID
		if err := r.give(n.self, l.revocation(gone).Raw); err != nil {
			t.Fatal(err)
		}
		n.until("a revocation", expelled(gone))
	}
	// Long enough for several looks at the access key.
	for v, began := 1, time.Now(); time.Since(began) < 5*n.prof.retryMin; v++ {
		n.Publish(content(0, v))
		n.until("a publication", shows(n.self, 0, v))
	}
}

func key32(t *testing.T, n byte) keys.AccessKey {
	t.Helper()
	raw := make([]byte, 32)
	raw[0] = n
	k, err := keys.AccessKeyFromRaw32(raw)
	if err != nil {
		t.Fatal(err)
	}
	return k
}
