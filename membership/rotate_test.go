package membership

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/membertest"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// signer makes an issuer of the lab's cluster.
func (l *lab) signer(name string) *membertest.Issuer {
	l.t.Helper()
	s, err := l.auth.Issuer(name, time.Now().Add(-time.Hour), time.Now().AddDate(1, 0, 0))
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// signs gives a node an issuer key, with the role in its certificate and no
// pause between targets.
func (l *lab) signs(s item.Signer) func(*Options) {
	return func(o *Options) {
		l.aged(0, keys.RoleIssuer)(o)
		o.Signer, o.RotateInterval = s, time.Nanosecond
	}
}

// memoryItems is an ItemCache that can fail.
type memoryItems struct {
	mu   sync.Mutex
	raws [][]byte
	err  error
}

func (m *memoryItems) Load() ([][]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.raws, m.err
}

func (m *memoryItems) Save(raws [][]byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.err == nil {
		m.raws = raws
	}
	return m.err
}

func (m *memoryItems) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

func (m *memoryItems) keeps(id ids.Epoch, trust keys.Trust) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, raw := range m.raws {
		if it, err := item.Reverify(trust, raw); err == nil && it.Version == uint64(id) {
			return true
		}
	}
	return false
}

// onEpoch reports whether a node shows a target epoch.
func onEpoch(want ids.Epoch) func(Snapshot) bool {
	return func(s Snapshot) bool { return s.Target.Epoch == want }
}

func (n *node) rotate(after ids.Epoch, driver string) (item.Target, error) {
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	return n.Rotate(ctx, after, driver, item.ReasonManual)
}

func (n *node) mustRotate(after ids.Epoch, driver string) item.Target {
	n.t.Helper()
	t, err := n.rotate(after, driver)
	if err != nil {
		n.t.Fatal(err)
	}
	return t
}

// TestRotate: any node asks, an issuer signs, every node shows the target.
func TestRotate(t *testing.T) {
	l := newLab(t)
	nodes := []*node{l.start(0, l.signs(l.signer("a"))), l.start(1), l.start(2)}
	for i, n := range nodes {
		n.Publish(content(i, 0))
	}
	converge(t, nodes, 3)
	for i, n := range nodes {
		if got := n.Snapshot().Target; got != item.FirstTarget() {
			t.Errorf("node %d begins with %+v", i, got)
		}
	}
	before := time.Now().Truncate(time.Second)
	want := nodes[0].mustRotate(1, item.DriverAuto)
	if want.Epoch != 2 || want.Driver != item.DriverAuto || want.Reason != item.ReasonManual || want.Created.Before(before) {
		t.Errorf("target is %+v", want)
	}
	if got := nodes[0].Snapshot().Target; got != want {
		t.Errorf("the issuer shows %+v", got)
	}
	for _, n := range nodes {
		n.until("epoch 2", func(s Snapshot) bool { return s.Target == want })
	}
	// A node without issuer key.
	want = nodes[2].mustRotate(2, item.DriverIPsec)
	if got := nodes[2].Snapshot().Target; got != want || want.Epoch != 3 || want.Driver != item.DriverIPsec {
		t.Errorf("asked for epoch 3, got %+v, shows %+v", want, got)
	}
	for _, n := range nodes {
		n.until("epoch 3", func(s Snapshot) bool { return s.Target == want })
	}
	// Who comes late gets the same answer.
	for _, n := range nodes {
		if got := n.mustRotate(1, item.DriverUserspace); got != want {
			t.Errorf("node %d: a late rotation gave %+v", n.i, got)
		}
	}
	if got, err := nodes[1].rotate(9, item.DriverAuto); !errors.Is(err, ErrNoIssuer) || !errors.Is(err, errBehind) {
		t.Errorf("after an epoch that nobody has: %+v, %v", got, err)
	}
}

// TestRotateAtOnce: many nodes ask at once, several times each, the issuer
// among them: one epoch.
func TestRotateAtOnce(t *testing.T) {
	l := newLab(t)
	signer := l.signer("a")
	nodes := []*node{l.start(0, l.signs(signer)), l.start(1), l.start(2), l.start(3)}
	for i, n := range nodes {
		n.Publish(content(i, 0))
	}
	converge(t, nodes, 4)
	for epoch := ids.Epoch(1); epoch < 6; epoch++ {
		got := make([]item.Target, 4*len(nodes))
		var wg sync.WaitGroup
		for i := range got {
			wg.Go(func() { got[i] = nodes[i%len(nodes)].mustRotate(epoch, item.DriverAuto) })
		}
		wg.Wait()
		for _, g := range got {
			if g != got[0] || g.Epoch != epoch+1 {
				t.Fatalf("rotations at once after epoch %d gave %+v", epoch, got)
			}
		}
		if v := signer.Signed("\x01"); v != uint64(epoch+1) {
			t.Fatalf("the issuer signed up to epoch %d", v)
		}
	}
}

// TestRotateInPartition: two issuers that do not see each other sign the same
// epoch. When they meet, all nodes keep the same one, and the next comes after.
func TestRotateInPartition(t *testing.T) {
	l := newLab(t)
	nodes := []*node{l.start(0, l.signs(l.signer("a"))), l.start(1, l.signs(l.signer("b"))), l.start(2), l.start(3)}
	for i, n := range nodes {
		n.Publish(content(i, 0))
	}
	converge(t, nodes, 4)
	half := func(id ids.NodeID) bool { return id == nodes[0].self || id == nodes[2].self }
	l.net.setBroken(func(from, to ids.NodeID) bool { return half(from) != half(to) })
	a, b := nodes[2].mustRotate(1, item.DriverWireGuard), nodes[3].mustRotate(1, item.DriverIPsec)
	if a.Epoch != 2 || b.Epoch != 2 || a == b {
		t.Fatalf("the halves rotated to %+v and %+v", a, b)
	}
	nodes[3].mustRotate(2, item.DriverIPsec)
	nodes[2].mustRotate(2, item.DriverWireGuard)
	l.net.setBroken(nil)
	converge(t, nodes, 4)
	for _, n := range nodes {
		n.until("the one epoch 3", func(s Snapshot) bool {
			return s.Target.Epoch == 3 && s.Target == nodes[0].Snapshot().Target
		})
	}
	l.waitLog("two issuers made a cluster item at once")
	want := nodes[3].mustRotate(3, item.DriverAuto)
	for _, n := range nodes {
		n.until("epoch 4", func(s Snapshot) bool { return s.Target == want })
	}
}

// TestPartitionsMergeUpward: one half rotates, the other half follows when it
// comes back, and a target never goes down.
func TestPartitionsMergeUpward(t *testing.T) {
	l := newLab(t)
	nodes := []*node{l.start(0, l.signs(l.signer("a"))), l.start(1), l.start(2)}
	for i, n := range nodes {
		n.Publish(content(i, 0))
	}
	converge(t, nodes, 3)
	l.net.setBroken(func(from, to ids.NodeID) bool { return from == nodes[2].self || to == nodes[2].self })
	for epoch := ids.Epoch(1); epoch < 4; epoch++ {
		nodes[1].mustRotate(epoch, item.DriverAuto)
	}
	if got, err := nodes[2].rotate(1, item.DriverAuto); !errors.Is(err, ErrNoIssuer) {
		t.Errorf("cut off, it got %+v, %v", got, err)
	} else if id := nodes[0].self.String(); !strings.Contains(err.Error(), id) {
		t.Errorf("%v does not name issuer %s", err, id)
	}
	l.net.setBroken(nil)
	nodes[2].until("epoch 4", onEpoch(4))
	// A newcomer knows it as soon as it knows anybody.
	late := l.start(3)
	late.Publish(content(3, 0))
	late.until("members and target", func(s Snapshot) bool { return len(s.Members) == 4 && s.Target.Epoch == 4 })
}

func TestRotateRefusals(t *testing.T) {
	l := newLab(t)
	alone := l.start(9)
	var none *NoIssuerError
	alone.Publish(content(9, 0))
	alone.until("itself", func(s Snapshot) bool { return len(s.Members) == 1 })
	if _, err := alone.rotate(1, item.DriverAuto); !errors.As(err, &none) || len(none.Tried) != 0 {
		t.Errorf("no issuer at all: %v", err)
	}
	signer := l.signer("a")
	issuer := l.start(0, l.signs(signer), func(o *Options) { o.RotateInterval = time.Hour })
	other := l.start(1)
	issuer.Publish(content(0, 0))
	other.Publish(content(1, 0))
	other.until("the issuer", func(s Snapshot) bool { return len(issuers(s)) == 1 })
	for _, n := range []*node{issuer, other} {
		if _, err := n.rotate(1, "carrier pigeon"); !errors.Is(err, ErrDriver) {
			t.Errorf("node %d, unknown driver: %v", n.i, err)
		}
	}
	// The driver of a newer node.
	req, err := rotateRequest{After: 1, Driver: item.DriverAuto}.encode()
	if err != nil {
		t.Fatal(err)
	}
	req[6] = 99
	b, err := issuer.serve(context.Background(), noisenet.Peer{ID: other.self}, req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseRotateAnswer(b); !errors.Is(err, ErrDriver) {
		t.Errorf("driver 99: %v", err)
	}
	// The issuer's disk is full, its reason stays there.
	signer.Fail(errors.New("no space left on device"))
	if _, err := other.rotate(1, item.DriverAuto); !errors.As(err, &none) || len(none.Tried) != 1 || none.Tried[0] != issuer.self ||
		strings.Contains(err.Error(), "no space") {
		t.Errorf("failing issuer: %v", err)
	}
	if _, err := issuer.rotate(1, item.DriverAuto); !errors.Is(err, ErrNoIssuer) || !strings.Contains(err.Error(), "no space") {
		t.Errorf("failing issuer, asked there: %v", err)
	}
	signer.Fail(nil)
	other.mustRotate(1, item.DriverAuto)
	var soon *TooSoonError
	for _, n := range []*node{issuer, other} {
		if _, err := n.rotate(2, item.DriverAuto); !errors.As(err, &soon) || soon.Wait <= 59*time.Minute || soon.Wait > time.Hour {
			t.Errorf("node %d, too soon: %v", n.i, err)
		}
	}
	issuer.stop()
	if _, err := issuer.rotate(2, item.DriverAuto); !errors.Is(err, ErrNotRunning) {
		t.Errorf("after Run: %v", err)
	}
	c, err := New(alone.opts)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Rotate(context.Background(), 1, item.DriverAuto, item.ReasonManual); !errors.Is(err, ErrNotRunning) {
		t.Errorf("before Run: %v", err)
	}
}

// TestRotateOtherIssuer: one that fails, is gone or has a clock that others do
// not believe is passed over.
func TestRotateOtherIssuer(t *testing.T) {
	l := newLab(t)
	bad := l.signer("bad")
	bad.Fail(errors.New("no space left on device"))
	nodes := []*node{l.start(0, l.signs(l.signer("good"))), l.start(1, l.signs(bad)), l.start(2, l.signs(l.signer("gone"))), l.start(3)}
	for i, n := range nodes {
		n.Publish(content(i, 0))
	}
	converge(t, nodes, 4)
	nodes[2].stop()
	for after, n := range []*node{nodes[1], nodes[3], nodes[0]} {
		if got := n.mustRotate(ids.Epoch(after+1), item.DriverAuto); got.Epoch != ids.Epoch(after+2) {
			t.Errorf("node %d got %+v", n.i, got)
		}
	}
}

// TestTwoIssuersAtOnce: both are asked at the same time, again and again. They
// may sign the same epoch; all nodes come to the same target.
func TestTwoIssuersAtOnce(t *testing.T) {
	l := newLab(t)
	nodes := []*node{l.start(0, l.signs(l.signer("a"))), l.start(1, l.signs(l.signer("b"))), l.start(2)}
	for i, n := range nodes {
		n.Publish(content(i, 0))
	}
	converge(t, nodes, 3)
	for epoch := ids.Epoch(1); epoch < 10; epoch++ {
		var wg sync.WaitGroup
		for i, driver := range []string{item.DriverWireGuard, item.DriverIPsec} {
			wg.Go(func() { nodes[i].mustRotate(epoch, driver) })
		}
		wg.Wait()
		for _, n := range nodes {
			n.until("one new epoch", func(s Snapshot) bool {
				return s.Target.Epoch == epoch+1 && s.Target == nodes[0].Snapshot().Target
			})
		}
	}
}

// TestTooSoon: the pause is counted from the last target, and a clock that was
// wrong does not stretch it.
func TestTooSoon(t *testing.T) {
	now := time.Now()
	c := &Cluster{opts: Options{RotateInterval: time.Minute}}
	for name, tt := range map[string]struct {
		age  time.Duration
		want time.Duration
	}{
		"just made":              {0, time.Minute},
		"half":                   {30 * time.Second, 30 * time.Second},
		"over":                   {2 * time.Minute, -time.Minute},
		"a little in the future": {-time.Minute, time.Minute},
		"far in the future":      {-time.Hour, 0},
	} {
		if got := c.tooSoon(now, item.Target{Epoch: 2, Created: now.Add(-tt.age)}); got != tt.want {
			t.Errorf("%s: wait %v, want %v", name, got, tt.want)
		}
	}
	if got := c.tooSoon(now, item.FirstTarget()); got > 0 {
		t.Errorf("first epoch: wait %v", got)
	}
}

// TestIssuerBehind: an issuer that has missed a target takes it from who asks.
func TestIssuerBehind(t *testing.T) {
	l := newLab(t)
	issuer := l.start(0, l.signs(l.signer("a")))
	issuer.Publish(content(0, 0))
	member := l.identity(1)
	it, err := item.SignTarget(time.Now(), l.auth.Trust, l.signer("b"),
		item.Target{Epoch: 7, Driver: item.DriverAuto, Created: time.Now().Truncate(time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	issuer.until("itself", func(s Snapshot) bool { return len(s.Members) == 1 })
	req, err := rotateRequest{After: 7, Driver: item.DriverIPsec, Reason: item.ReasonLimit, Target: it.Raw}.encode()
	if err != nil {
		t.Fatal(err)
	}
	// An item that nobody signed is no reason to make one.
	bad := bytes.Clone(req)
	bad[len(bad)-1] ^= 1
	if _, err := issuer.serve(context.Background(), noisenet.Peer{ID: member.ID}, bad); err == nil {
		t.Error("a request with a forged target was served")
	}
	b, err := issuer.serve(context.Background(), noisenet.Peer{ID: member.ID}, req)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := parseRotateAnswer(b)
	if err != nil {
		t.Fatal(err)
	}
	got, err := item.Verify(l.auth.Trust, time.Now(), raw)
	if err != nil || got.Version != 8 {
		t.Errorf("answer: %+v, %v", got, err)
	}
	// Another node without issuer key says so.
	b, err = l.start(1).serve(context.Background(), noisenet.Peer{ID: member.ID}, req)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parseRotateAnswer(b); err == nil {
		t.Error("a node without issuer key made a target")
	}
}
