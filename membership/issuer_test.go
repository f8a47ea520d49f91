package membership

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/membertest"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// by gives a node a certificate of an issuer, with roles, and somewhere to keep a
// renewed one.
func (l *lab) by(i *membertest.Issuer, roles uint8) func(*Options) {
	return func(o *Options) {
		l.t.Helper()
		o.Identity.Cert.Issuer, o.Identity.Cert.Roles = i.Public(), roles
		var err error
		if o.Identity.Credential, err = l.auth.CertifyBy(i, o.Identity.Cert); err != nil {
			l.t.Fatal(err)
		}
		o.Adopt = func(keys.Credential) error { return nil }
	}
}

// issues makes a node sign items and renew certificates with an issuer's key.
func (l *lab) issues(i *membertest.Issuer) func(*Options) {
	return func(o *Options) {
		l.by(i, keys.RoleIssuer)(o)
		o.Signer, o.RotateInterval, o.Renewal = i, time.Nanosecond, renewerBy{l, i}
	}
}

// renewerBy renews with the key of an issuer.
type renewerBy struct {
	l *lab
	i *membertest.Issuer
}

func (r renewerBy) Renew(now time.Time, member keys.Cert, early bool) (keys.Credential, error) {
	if !early && now.Before(halfLife(member)) {
		return keys.Credential{}, errors.New("too early")
	}
	member.NotBefore = now.Truncate(time.Second)
	member.NotAfter = member.NotBefore.AddDate(0, 0, 30)
	return r.l.auth.CertifyBy(r.i, member)
}

// rootRevokes has the root sign what a node asks for.
func (l *lab) rootRevokes(n *node, r item.IssuerRevocation) []byte {
	l.t.Helper()
	unsigned, err := n.IssuerRevocation(r)
	if err != nil {
		l.t.Fatal(err)
	}
	root, err := l.auth.Root()
	if err != nil {
		l.t.Fatal(err)
	}
	raw, err := item.SignUnsigned(root, unsigned)
	if err != nil {
		l.t.Fatal(err)
	}
	return raw
}

// certified reports whether a snapshot shows n members, all with certificates of
// an issuer.
func certified(n int, by keys.IssuerPublic) func(Snapshot) bool {
	return func(s Snapshot) bool {
		for _, m := range s.Members {
			if m.Cert.Issuer != by {
				return false
			}
		}
		return len(s.Members) == n
	}
}

// TestRevokeIssuer: the members change over to another issuer, what the revoked
// one has decided before stands, and nothing that its key signs now has any effect.
func TestRevokeIssuer(t *testing.T) {
	l := newLab(t)
	a, b := l.signer("a"), l.signer("b")
	var dropped atomic.Int32
	first := l.start(0, l.issues(a), func(o *Options) {
		o.DropIssuer = func() error { dropped.Add(1); return nil }
	})
	nodes := []*node{first, l.start(1, l.issues(b)), l.start(2, l.by(a, 0)), l.start(3, l.by(a, 0))}
	for i, n := range nodes {
		n.Publish(content(i, 0))
	}
	converge(t, nodes, 4)
	before := nodes[2].view.Load().set.Get(nodes[2].self).Entry.Credential
	gone := l.identity(7)
	if _, err := first.Revoke(context.Background(), item.Revocation{Node: gone.ID}); err != nil {
		t.Fatal(err)
	}
	first.mustRotate(1, item.DriverAuto)
	nodes[3].until("epoch 2, and the revocation", func(s Snapshot) bool { return s.Target.Epoch == 2 && len(s.Revoked) == 1 })

	raw := l.rootRevokes(nodes[3], item.IssuerRevocation{Issuer: a.Public(), Reason: "stolen"})
	r, err := nodes[3].RevokeIssuer(raw)
	if err != nil || r.Issuer != a.Public() || r.Reason != "stolen" || r.Target != 2 || !nodes[3].Snapshot().IssuerRevoked(a.Public()) {
		t.Fatalf("%+v, %v", r, err)
	}
	for _, n := range nodes {
		n.until("all have certificates of the other issuer", certified(4, b.Public()))
		n.until("and are there", whole(4))
		if s := n.Snapshot(); len(s.Revoked) != 1 || s.Target.Epoch != 2 {
			t.Errorf("node %d: %d revoked, epoch %d", n.i, len(s.Revoked), s.Target.Epoch)
		}
	}
	if dropped.Load() == 0 {
		t.Error("the node keeps the revoked issuer key")
	}
	if m, _ := nodes[3].Snapshot().Member(first.self); m.Cert.Roles&keys.RoleIssuer != 0 {
		t.Error("others still ask the node for what its issuer cannot do")
	}
	if _, err := first.Revoke(context.Background(), item.Revocation{Node: nodes[2].self}); !errors.Is(err, ErrIssuerRevoked) {
		t.Errorf("the revoked issuer revokes: %v", err)
	}
	if target := nodes[2].mustRotate(2, item.DriverAuto); target.Epoch != 3 {
		t.Errorf("target without the revoked issuer: %+v", target)
	}
	l.checkThief(nodes, a, before)
}

// checkThief tries what the holder of a revoked issuer's key can, with a member's
// help.
func (l *lab) checkThief(nodes []*node, a *membertest.Issuer, former keys.Credential) {
	l.t.Helper()
	helper := l.rogue(8, nil)
	target, err := item.SignTarget(time.Now(), l.auth.Trust, a, item.Target{Epoch: 9, Driver: item.DriverAuto, Created: time.Now().Truncate(time.Second)})
	if err != nil {
		l.t.Fatal(err)
	}
	if err := helper.give(nodes[1].self, target.Raw); err != nil {
		l.t.Errorf("a member that has not heard of it is accused: %v", err)
	}
	// A new node, and a known one with a Noise key of the thief's.
	stranger := l.rogue(5, nil)
	options := Options{Identity: stranger.id}
	l.by(a, 0)(&options)
	stranger.SetCredential(options.Identity.Credential)
	if _, err := stranger.Call(context.Background(), nodes[1].self, giveRequest([32]byte{}, nil)); !errors.Is(err, noisenet.ErrRefused) {
		l.t.Errorf("a new node with a certificate of the revoked issuer: %v", err)
	}
	cert := l.identity(2).Cert
	cert.Noise, cert.NotBefore = stranger.id.Noise.Public(), time.Now().Add(time.Minute).Truncate(time.Second)
	forged, err := l.auth.CertifyBy(a, cert)
	if err != nil {
		l.t.Fatal(err)
	}
	own := nodes[1].view.Load().set.Get(nodes[2].self).Entry.Record
	for name, c := range map[string]keys.Credential{"forged": forged, "former": former} {
		if err := helper.push(nodes[1].self, record.Entry{Credential: c, Record: own}); err != nil {
			l.t.Errorf("%s: %v", name, err)
		}
	}
	if m, _ := nodes[1].Snapshot().Member(nodes[2].self); m.Cert.Noise == cert.Noise || nodes[1].Snapshot().Target.Epoch != 3 {
		l.t.Errorf("the thief has changed something: epoch %d", nodes[1].Snapshot().Target.Epoch)
	}
}

// TestRevokeIssuerRefuses: only the root says so.
func TestRevokeIssuerRefuses(t *testing.T) {
	l := newLab(t)
	a := l.signer("a")
	n := l.start(0, l.issues(a))
	n.Publish(content(0, 0))
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	raw := l.rootRevokes(n, item.IssuerRevocation{Issuer: a.Public()})
	for i := range raw {
		altered := append([]byte(nil), raw...)
		altered[i] ^= 1
		if _, err := n.RevokeIssuer(altered); err == nil {
			t.Errorf("byte %d altered: accepted", i)
		}
	}
	other := l.revocation(l.identity(7).ID)
	if _, err := n.RevokeIssuer(other.Raw); !errors.Is(err, item.ErrMalformed) {
		t.Errorf("the revocation of a node: %v", err)
	}
	if s := n.Snapshot(); len(s.RevokedIssuers)+len(s.Revoked) != 0 {
		t.Errorf("%+v", s)
	}
}

// TestRevokedIssuerAlone: without another issuer the members that know each other
// stay together, over restarts, too, and nobody comes in.
func TestRevokedIssuerAlone(t *testing.T) {
	l := newLab(t)
	a := l.signer("a")
	stored, cached := &memoryItems{}, &memoryCache{}
	nodes := []*node{l.start(0, l.issues(a)), l.start(1, l.by(a, 0)), l.start(2, l.by(a, 0), func(o *Options) { o.ItemCache, o.Cache = stored, cached })}
	for i, n := range nodes {
		n.Publish(content(i, 0))
	}
	converge(t, nodes, 3)
	if _, err := nodes[1].RevokeIssuer(l.rootRevokes(nodes[1], item.IssuerRevocation{Issuer: a.Public()})); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		n.until("the revocation", func(s Snapshot) bool { return s.IssuerRevoked(a.Public()) })
	}
	nodes[2].stop()
	l.run(nodes[2])
	nodes[2].Publish(content(2, 1))
	for _, n := range nodes {
		n.until("the restarted node", shows(nodes[2].self, 2, 1))
		n.until("all three", whole(3))
	}
	stranger := l.rogue(5, nil)
	options := Options{Identity: stranger.id}
	l.by(a, 0)(&options)
	stranger.SetCredential(options.Identity.Credential)
	for _, n := range nodes {
		if _, err := stranger.Call(context.Background(), n.self, giveRequest([32]byte{}, nil)); !errors.Is(err, noisenet.ErrRefused) {
			t.Errorf("node %d: %v", n.i, err)
		}
	}
}

// TestUndoRevocations: what a stolen issuer key has revoked comes back when the
// root says so, also on a node that has restarted meanwhile; and may not be
// revoked by it again.
func TestUndoRevocations(t *testing.T) {
	l := newLab(t)
	a, b := l.signer("a"), l.signer("b")
	stored, cached := &memoryItems{}, &memoryCache{}
	nodes := []*node{l.start(0, l.issues(a)), l.start(1, l.issues(b)), l.start(2, l.by(a, 0), func(o *Options) { o.ItemCache, o.Cache = stored, cached }), l.start(3, l.by(a, 0))}
	for i, n := range nodes {
		n.Publish(content(i, 0))
	}
	converge(t, nodes, 4)
	victim := nodes[3]
	if _, err := nodes[0].Revoke(context.Background(), item.Revocation{Node: victim.self}); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes[:3] {
		n.until("the victim is out", expelled(victim.self))
	}
	nodes[2].stop()
	l.run(nodes[2])
	nodes[2].Publish(content(2, 0))
	nodes[2].until("still out after a restart", expelled(victim.self))
	if _, err := nodes[1].RevokeIssuer(l.rootRevokes(nodes[1], item.IssuerRevocation{Issuer: a.Public()})); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes[:3] {
		n.until("certificates of the other issuer", certified(3, b.Public()))
		if !expelled(victim.self)(n.Snapshot()) {
			t.Errorf("node %d: the victim is back although nobody said so", n.i)
		}
	}
	if _, err := nodes[1].RevokeIssuer(l.rootRevokes(nodes[1], item.IssuerRevocation{Issuer: a.Public(), Undo: true})); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes {
		n.until("the victim is back", whole(4))
		n.until("with a new certificate", certified(4, b.Public()))
	}
	again, err := item.SignRevocation(time.Now(), l.auth.Trust, a, item.Revocation{Node: nodes[2].self, Created: time.Now().Truncate(time.Second)})
	if err != nil {
		t.Fatal(err)
	}
	helper := l.rogue(8, nil)
	if err := helper.give(nodes[1].self, again.Raw); err != nil {
		t.Error(err)
	}
	if s := nodes[1].Snapshot(); len(s.Revoked) != 0 || len(s.Members) != 4 {
		t.Errorf("%d revoked, %d members", len(s.Revoked), len(s.Members))
	}
}

// TestRevokedIssuerIsNotWaitedFor: a node whose issuer was revoked asks again after
// seconds, because whom it asks first may not know yet; then each minute.
func TestRevokedIssuerIsNotWaitedFor(t *testing.T) {
	l := newLab(t)
	a := l.signer("a")
	o := Options{Profile: ProfileLAN, NextSeq: func() (uint64, error) { return 1, nil }, Identity: l.identity(0)}
	l.by(a, 0)(&o)
	c, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	r := renewal{c: c, cert: c.opts.Identity.Cert}
	now := time.Now()
	if r.step(t.Context(), now); !r.retryAt.IsZero() || r.pause(now) != c.prof.renew {
		t.Errorf("asks before it has to: again at %v", r.retryAt)
	}
	unsigned, err := c.IssuerRevocation(item.IssuerRevocation{Issuer: a.Public()})
	if err != nil {
		t.Fatal(err)
	}
	root, err := l.auth.Root()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := item.SignUnsigned(root, unsigned)
	if err != nil {
		t.Fatal(err)
	}
	it, err := item.Verify(l.auth.Trust, now, raw)
	if err != nil {
		t.Fatal(err)
	}
	var set item.Set
	if _, err := set.Insert(it); err != nil {
		t.Fatal(err)
	}
	c.view.Store(newView(c.self, record.Set{}, set, nil))
	var pauses []time.Duration
	for range 8 {
		r.step(t.Context(), now) // nobody is there to be asked
		pauses = append(pauses, r.pause(now).Round(time.Second))
		now = r.retryAt
	}
	if pauses[0] > 2*time.Second || pauses[1] < pauses[0] || pauses[7] != time.Minute {
		t.Errorf("asks again after %v", pauses)
	}
}
