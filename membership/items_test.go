package membership

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/internal/ids"

	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// target makes the item of an epoch, signed by an issuer of its own.
func (l *lab) target(epoch ids.Epoch, created time.Time) *item.Item {
	l.t.Helper()
	it, err := item.SignTarget(created, l.auth.Trust, l.signer("of targets"),
		item.Target{Epoch: epoch, Driver: item.DriverAuto, Created: created.Truncate(time.Second)})
	if err != nil {
		l.t.Fatal(err)
	}
	return it
}

// other makes an item of a kind that nobody knows.
func (l *lab) other(key string, size int) *item.Item {
	l.t.Helper()
	it, err := item.Sign(time.Now(), l.auth.Trust, l.signer("of others"), item.Content{
		Slot: item.Slot{Kind: 200, Key: key}, Version: 1, Created: time.Now().Truncate(time.Second), Body: make([]byte, size)})
	if err != nil {
		l.t.Fatal(err)
	}
	return it
}

func (r *rogue) give(to ids.NodeID, raws ...[]byte) error {
	_, err := r.Call(context.Background(), to, giveRequest([32]byte{}, raws))
	return err
}

// holdItems waits until all nodes hold n items, the same ones.
func holdItems(t *testing.T, nodes []*node, n int) {
	t.Helper()
	for _, m := range nodes {
		m.until("the items of all", func(Snapshot) bool {
			v := m.view.Load()
			return v.cluster.Len() == n && v.clusterDigest == nodes[0].view.Load().clusterDigest
		})
	}
}

// TestItemsOfUnknownKinds: what a newer node needs passes through older ones,
// also what is too large for a packet.
func TestItemsOfUnknownKinds(t *testing.T) {
	l := newLab(t)
	nodes := l.cluster(3)
	converge(t, nodes, 3)
	r := l.rogue(8, nil)
	var raws [][]byte
	for _, key := range []string{"a", "b", "c"} {
		raws = append(raws, l.other(key, 10).Raw, l.other("large "+key, item.MaxBody).Raw)
	}
	if err := r.give(nodes[1].self, raws...); err != nil {
		t.Fatal(err)
	}
	holdItems(t, nodes, 6)
	if got := nodes[2].Snapshot().Target; got != item.FirstTarget() {
		t.Errorf("target is %+v", got)
	}
}

// TestItemByGossip: an item in a user message is verified, then sent on.
func TestItemByGossip(t *testing.T) {
	l := newLab(t)
	n := l.start(0)
	n.Publish(content(0, 0))
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	good := l.target(5, time.Now())
	d := delegate{n.Cluster}
	forged := bytes.Clone(good.Raw)
	forged[len(forged)-1] ^= 1
	d.NotifyMsg(itemMessage(forged))
	d.NotifyMsg(itemMessage([]byte("no item")))
	d.NotifyMsg([]byte{messageItem})
	buf := itemMessage(good.Raw)
	d.NotifyMsg(buf)
	clear(buf) // memberlist may use it again
	n.until("epoch 5", onEpoch(5))
	sent := 0
	for _, b := range n.hints.GetBroadcasts(0, 1<<20) {
		if raw, ok := parseItemMessage(b); ok {
			sent++
			if !bytes.Equal(raw, good.Raw) {
				t.Error("an item that was not verified is sent on")
			}
		}
	}
	if sent != 1 {
		t.Errorf("%d items are sent on, want 1", sent)
	}
}

// TestHeardIsBounded: however many items gossip brings, a few are verified per
// tick, and a repeated one takes no room.
func TestHeardIsBounded(t *testing.T) {
	l := newLab(t)
	lp := &loop{}
	same := l.other("same", 1).Raw
	for range 100 {
		lp.gossiped(same)
	}
	if len(lp.heard) != 1 {
		t.Errorf("one item takes %d places", len(lp.heard))
	}
	for i := range 2 * maxHeard {
		lp.gossiped(l.other(strings.Repeat("k", i), 1).Raw)
	}
	if len(lp.heard) != maxHeard {
		t.Errorf("%d items wait, want %d", len(lp.heard), maxHeard)
	}
}

// TestForgedItems: a member hands over items that nobody signed, in every way
// there is. None is accepted, and it is blamed once.
func TestForgedItems(t *testing.T) {
	l := newLab(t)
	nodes := l.cluster(2)
	converge(t, nodes, 2)
	bad := bytes.Clone(l.target(5, time.Now()).Raw)
	bad[len(bad)-1] ^= 1
	r := l.rogue(8, func(_ context.Context, _ noisenet.Peer, req []byte) ([]byte, error) {
		if req[0] == kindItems {
			return itemsAnswer{Items: [][]byte{bad}}.encode(), nil
		}
		return syncAnswer{}.encode(), nil
	})
	good := l.other("good", 1).Raw
	for range 5 {
		if err := r.give(nodes[0].self, good, bad); err == nil {
			t.Error("a forged item was taken")
		}
	}
	l.waitLogs("sent an invalid record or item", 1)
	var res result
	var invalid *invalidError
	if err := nodes[1].syncItems(context.Background(), r.id.ID, &res); !errors.As(err, &invalid) || res.itemsComplete {
		t.Errorf("an answer with a forged item: %v", err)
	}
	for _, n := range nodes {
		if v := n.view.Load(); v.cluster.Len() != 0 || v.snap.Target != item.FirstTarget() {
			t.Errorf("node %d holds %d items", n.i, v.cluster.Len())
		}
	}
	if got := l.log.count("sent an invalid record or item"); got != 1 {
		t.Errorf("%d lines about the rogue, want 1", got)
	}
}

// TestItemFromTheFuture is skipped, and nobody is blamed: one of the clocks is
// wrong. What came with it is taken.
func TestItemFromTheFuture(t *testing.T) {
	l := newLab(t)
	n := l.start(0)
	n.Publish(content(0, 0))
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	r := l.rogue(8, nil)
	if err := r.give(n.self, l.target(5, time.Now().Add(time.Hour)).Raw, l.other("good", 1).Raw); err != nil {
		t.Fatal(err)
	}
	holdItems(t, []*node{n}, 1)
	if n.Snapshot().Target.Epoch != 1 || l.log.count("sent an invalid") != 0 {
		t.Errorf("target is %+v", n.Snapshot().Target)
	}
}

// orderedItems notes what the node showed at each write.
type orderedItems struct {
	memoryItems
	shown func() ids.Epoch
	saw   []ids.Epoch
}

func (o *orderedItems) Save(raws [][]byte) error {
	o.saw = append(o.saw, o.shown())
	return o.memoryItems.Save(raws)
}

// TestItemIsKeptBeforeUse: when an item is written, nobody has seen it yet.
func TestItemIsKeptBeforeUse(t *testing.T) {
	l := newLab(t)
	store := &orderedItems{}
	n := l.start(0, l.signs(l.signer("a")), func(o *Options) { o.ItemCache = store })
	store.shown = func() ids.Epoch { return n.Snapshot().Target.Epoch }
	n.Publish(content(0, 0))
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	n.mustRotate(1, item.DriverAuto)
	n.mustRotate(2, item.DriverAuto)
	if d := cmp.Diff([]ids.Epoch{1, 2}, store.saw); d != "" {
		t.Errorf("shown when epochs 2 and 3 were written:\n%s", d)
	}
}

// TestItemsOutliveTheProcess: a node that restarts alone, its clock back in the
// past or not, shows the target that it knew; with an older copy of the file it
// merges upward as soon as it meets another.
func TestItemsOutliveTheProcess(t *testing.T) {
	l := newLab(t)
	file := FileItems{Path: filepath.Join(t.TempDir(), "items")}
	issuer := l.start(0, l.signs(l.signer("a")))
	issuer.Publish(content(0, 0))
	n := l.start(1, func(o *Options) { o.ItemCache = file })
	n.Publish(content(1, 0))
	converge(t, []*node{issuer, n}, 2)
	n.mustRotate(1, item.DriverAuto)
	old, err := os.ReadFile(file.Path)
	if err != nil {
		t.Fatal(err)
	}
	want := n.mustRotate(2, item.DriverIPsec)
	n.stop()
	l.net.setBroken(func(_, _ ids.NodeID) bool { return true })
	l.run(n)
	n.until("a first view", func(s Snapshot) bool { return s.Target.Epoch != 0 })
	if got := n.Snapshot().Target; got != want {
		t.Errorf("restarted alone, it shows %+v", got)
	}
	n.stop()
	if err := os.WriteFile(file.Path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	l.run(n)
	n.Publish(content(1, 1))
	n.until("a first view", func(s Snapshot) bool { return s.Target.Epoch != 0 })
	if got := n.Snapshot().Target.Epoch; got != 2 {
		t.Errorf("with the older file it shows epoch %d", got)
	}
	l.net.setBroken(nil)
	n.until("the target of the others", func(s Snapshot) bool { return s.Target == want })
}

// TestStoredItemsAreVerified: a disk is no signer.
func TestStoredItemsAreVerified(t *testing.T) {
	l := newLab(t)
	good := l.target(5, time.Now().Add(time.Hour)).Raw // accepted by an earlier process, whose clock was ahead
	bad := bytes.Clone(l.target(9, time.Now()).Raw)
	bad[len(bad)-1] ^= 1
	n := l.start(0, func(o *Options) { o.ItemCache = &memoryItems{raws: [][]byte{bad, good, []byte("x")}} })
	n.until("a first view", func(s Snapshot) bool { return s.Target.Epoch != 0 })
	if got := n.Snapshot().Target.Epoch; got != 5 {
		t.Errorf("target is epoch %d, want 5", got)
	}
	if got := l.log.count("stored cluster item is left out"); got != 2 {
		t.Errorf("%d items were left out, want 2", got)
	}
	broken := &memoryItems{err: errors.New("input/output error")}
	n = l.start(1, func(o *Options) { o.ItemCache = broken })
	n.until("a first view", onEpoch(1))
	l.waitLog("stored cluster items are not used")
}

// TestFullDisk: an item of others is used although it cannot be written, and is
// written as soon as that works; an own one is not made.
func TestFullDisk(t *testing.T) {
	l := newLab(t)
	full := &memoryItems{err: errors.New("no space left on device")}
	issuerDisk := &memoryItems{}
	nodes := []*node{
		l.start(0, l.signs(l.signer("a")), func(o *Options) { o.ItemCache = issuerDisk }),
		l.start(1, func(o *Options) { o.ItemCache = full }),
	}
	for i, n := range nodes {
		n.Publish(content(i, 0))
	}
	converge(t, nodes, 2)
	nodes[0].mustRotate(1, item.DriverAuto)
	nodes[1].until("epoch 2, from memory", onEpoch(2))
	full.fail(nil)
	nodes[1].until("epoch 2, on disk", func(Snapshot) bool { return full.keeps(2, l.auth.Trust) })

	issuerDisk.fail(errors.New("no space left on device"))
	if _, err := nodes[0].rotate(2, item.DriverAuto); !errors.Is(err, ErrNoIssuer) || !strings.Contains(err.Error(), "no space") {
		t.Errorf("issuer with a full disk: %v", err)
	}
	if got := nodes[0].Snapshot().Target.Epoch; got != 2 {
		t.Errorf("it shows epoch %d", got)
	}
	issuerDisk.fail(nil)
	nodes[0].mustRotate(2, item.DriverAuto)
	nodes[1].until("epoch 3", onEpoch(3))
}

// TestItemsOfOldNodes: a node older than cluster items answers no such request
// and sends a shorter ack; its records are exchanged all the same.
func TestItemsOfOldNodes(t *testing.T) {
	l := newLab(t)
	n := l.start(0)
	n.Publish(content(0, 0))
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	r := l.rogue(8, func(_ context.Context, _ noisenet.Peer, req []byte) ([]byte, error) {
		if req[0] != kindSync {
			return nil, errors.New("message is malformed: kind 5")
		}
		return syncAnswer{}.encode(), nil
	})
	c := content(8, 0)
	c.Seq = 1
	if err := r.push(n.self, r.entry(c)); err != nil {
		t.Fatal(err)
	}
	n.until("its record", func(s Snapshot) bool { return len(s.Members) == 2 })
	var res result
	if err := n.sync(context.Background(), r.id.ID, &res); err != nil || !res.complete || res.itemsComplete {
		t.Errorf("sync: %v, records %v, items %v", err, res.complete, res.itemsComplete)
	}
}

func TestFileItems(t *testing.T) {
	f := FileItems{Path: filepath.Join(t.TempDir(), "items")}
	if got, err := f.Load(); got != nil || err != nil {
		t.Errorf("no file: %v, %v, want nothing", got, err)
	}
	for _, want := range [][][]byte{nil, {[]byte("one")}, {[]byte("one"), []byte("two")}} {
		if err := f.Save(want); err != nil {
			t.Fatal(err)
		}
		got, err := f.Load()
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	}
	info, err := os.Stat(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v, want 0600", info.Mode().Perm())
	}
	good, err := os.ReadFile(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range good {
		altered := bytes.Clone(good)
		altered[i] ^= 1
		for what, b := range map[string][]byte{"cut": good[:i], "altered": altered} {
			if err := os.WriteFile(f.Path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			if got, err := f.Load(); err == nil || !strings.Contains(err.Error(), f.Path) {
				t.Errorf("%s at %d: read as %v, %v", what, i, got, err)
			}
		}
	}
	if err := (FileItems{Path: filepath.Join(t.TempDir(), "missing", "items")}).Save(nil); err == nil {
		t.Error("a file was written into a missing directory")
	}
}

// TestItemsChangeWakes: a new target wakes the reader and nothing else about it
// is needed.
func TestItemsChangeWakes(t *testing.T) {
	l := newLab(t)
	a, b := newView(l.identity(0).ID, record.Set{}, item.Set{}, nil), item.Set{}
	if _, err := b.Insert(l.target(2, time.Now())); err != nil {
		t.Fatal(err)
	}
	v := newView(l.identity(0).ID, record.Set{}, b, nil)
	if !v.differs(a) || a.differs(a) {
		t.Error("a new target is no difference")
	}
	got, ok := parseAck(v.ack.encode())
	if !ok || got.Epoch != 2 || got.Items != b.Digest() {
		t.Errorf("ack is %+v, %v", got, ok)
	}
}
