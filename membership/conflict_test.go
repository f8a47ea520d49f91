package membership

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

// TestConflictShown: a conflict stands for a day, or until a newer version.
func TestConflictShown(t *testing.T) {
	l := serialLab(t)
	now := time.Now()
	mine := l.target(2, now)
	var set item.Set
	_, _ = set.Insert(mine)
	c := Conflict{Slot: item.TargetSlot(), Version: 2, Kept: signerOf(mine), Lost: ItemSigner{Root: true}, At: now}
	var all conflicts
	all.add([]Conflict{c})
	again := c
	again.At = now.Add(time.Hour)
	all.add([]Conflict{again}) // the same one, from a node that is behind
	if d := cmp.Diff([]Conflict{c}, all.shown(now.Add(conflictShown-time.Second), &set)); d != "" {
		t.Error(d)
	}
	if got := all.shown(now.Add(conflictShown), &set); got != nil || len(all) != 0 {
		t.Errorf("after a day: %v", got)
	}
	all.add([]Conflict{c})
	_, _ = set.Insert(l.target(3, now))
	if got := all.shown(now, &set); got != nil || len(all) != 0 {
		t.Errorf("after a newer version: %v", got)
	}
	for i := range 2 * maxConflicts {
		all.add([]Conflict{{Slot: item.Slot{Kind: 200, Key: fmt.Sprint(i)}, Version: 1, At: now}})
	}
	if len(all) != maxConflicts {
		t.Errorf("%d conflicts are remembered", len(all))
	}
	for s, want := range map[ItemSigner]string{c.Lost: "the root", c.Kept: "issuer " + c.Kept.Key.Fingerprint()} {
		if s.String() != want {
			t.Errorf("%+v is %q", s, s)
		}
	}
}

// TestConflict: two issuers that do not see each other sign one epoch. When they
// meet, nodes that have seen both items show who signed them; with the next epoch
// it is over everywhere.
func TestConflict(t *testing.T) {
	l := newLab(t)
	nodes := []*node{l.start(0, l.signs(l.signer("a"))), l.start(1, l.signs(l.signer("b"))), l.start(2), l.start(3)}
	for i, n := range nodes {
		n.Publish(content(i, 0))
	}
	converge(t, nodes, 4)
	half := map[ids.NodeID]bool{nodes[0].self: true, nodes[2].self: true}
	l.net.setBroken(func(from, to ids.NodeID) bool { return half[from] != half[to] })
	x, y := nodes[0].mustRotate(1, item.DriverUserspace), nodes[1].mustRotate(1, item.DriverIPsec)
	nodes[2].until("epoch 2", onEpoch(2))
	nodes[3].until("epoch 2", onEpoch(2))
	signers := map[ItemSigner]bool{}
	for _, n := range nodes[:2] {
		signers[signerOf(n.view.Load().cluster.Get(item.TargetSlot()))] = true
		if got := n.Snapshot().Conflicts; len(got) != 0 {
			t.Errorf("node %d shows %+v before it can know", n.i, got)
		}
	}
	l.net.setBroken(nil)
	equalItems(t, nodes)
	// At least the half whose item lost has seen both.
	seen := 0
	for _, n := range nodes {
		for _, c := range n.Snapshot().Conflicts {
			seen++
			kept := signerOf(n.view.Load().cluster.Get(item.TargetSlot()))
			if c.Slot != item.TargetSlot() || c.Version != 2 || c.Kept != kept || c.Lost == kept || !signers[c.Lost] || time.Since(c.At) > time.Minute {
				t.Errorf("node %d shows %+v", n.i, c)
			}
		}
	}
	if seen < 2 {
		t.Errorf("%d nodes show the conflict of %+v and %+v", seen, x, y)
	}
	nodes[3].mustRotate(2, item.DriverAuto)
	for _, n := range nodes {
		n.until("no conflict", func(s Snapshot) bool { return s.Target.Epoch == 3 && len(s.Conflicts) == 0 })
	}
}

// TestNoConflictOverRevocations: an issuer that revokes a node twice, with other
// words, means the same.
func TestNoConflictOverRevocations(t *testing.T) {
	l := newLab(t)
	n := l.start(0)
	n.Publish(content(0, 0))
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	r, gone := l.rogue(8, nil), l.identity(7).ID
	for _, reason := range []string{"one", "two"} {
		it, err := item.SignRevocation(time.Now(), l.auth.Trust, l.signer("a"), item.Revocation{Node: gone, Reason: reason, Created: time.Now().Truncate(time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		if err := r.give(n.self, it.Raw); err != nil {
			t.Fatal(err)
		}
	}
	if s := n.Snapshot(); len(s.Revoked) != 1 || len(s.Conflicts) != 0 {
		t.Errorf("%d revoked, conflicts %+v", len(s.Revoked), s.Conflicts)
	}
	l.waitLogs("two issuers made a cluster item at once", 1)
}

// TestConflictOfOneIssuer: an issuer that signs a version twice, because its data
// were restored, is named on both sides, whichever item comes first.
func TestConflictOfOneIssuer(t *testing.T) {
	l := newLab(t)
	var twins [][]byte
	for _, driver := range []string{item.DriverAuto, item.DriverIPsec} {
		it, err := item.SignTarget(time.Now(), l.auth.Trust, l.signer("a"), item.Target{Epoch: 2, Driver: driver, Created: time.Now().Truncate(time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		twins = append(twins, it.Raw)
	}
	l.net.setBroken(func(from, to ids.NodeID) bool {
		return from == l.identity(0).ID && to == l.identity(1).ID || from == l.identity(1).ID && to == l.identity(0).ID
	})
	r := l.rogue(8, nil)
	for i := range 2 {
		n := l.start(i)
		n.Publish(content(i, 0))
		n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
		for j := range 2 {
			if _, err := r.Call(context.Background(), n.self, giveRequest([32]byte{}, [][]byte{twins[(i+j)%2]})); err != nil {
				t.Fatal(err)
			}
		}
		if c := n.Snapshot().Conflicts; len(c) != 1 || c[0].Kept != c[0].Lost || c[0].Kept.Root {
			t.Errorf("node %d: conflicts are %+v", i, c)
		}
	}
}
