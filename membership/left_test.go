package membership

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// departed reports whether a snapshot shows a node as one that has left, and as
// nothing else.
func departed(id ids.NodeID) func(Snapshot) bool {
	return func(s Snapshot) bool {
		_, member := s.Member(id)
		return s.HasLeft(id) && !member
	}
}

// told reports whether so many others are known to know that the node has left.
func told(want int) func(Snapshot) bool {
	return func(s Snapshot) bool {
		n := 0
		for _, m := range s.Members {
			if m.Told {
				n++
			}
		}
		return n == want
	}
}

// gossips reports whether memberlist counts a node.
func (n *node) gossips(id ids.NodeID) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.ContainsFunc(n.gossip.Members(), func(m *memberlist.Node) bool { return m.Name == id.String() })
}

func (n *node) depart(at time.Time) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if err := n.Depart(ctx, at); err != nil {
		n.t.Fatal(err)
	}
	if !n.Snapshot().HasLeft(n.self) {
		n.t.Error("the snapshot does not show it when Depart returns")
	}
}

// signed is an entry of a member with any content.
func (l *lab) signed(id keystore.Identity, n record.Node) record.Entry {
	l.t.Helper()
	n.ID = id.ID
	raw, err := record.Sign(n, id.Node)
	if err != nil {
		l.t.Fatal(err)
	}
	return record.Entry{Credential: id.Credential, Record: raw}
}

func TestDepart(t *testing.T) {
	l := newLab(t)
	nodes := l.cluster(5)
	converge(t, nodes, 5)
	leaver, at := nodes[4], time.Now().Truncate(time.Second)
	leaver.depart(at)
	leaver.until("all others are told", told(4))
	for _, n := range nodes[:4] {
		n.until("it has left", departed(leaver.self))
		n.until("four members", whole(4))
		if d := n.Snapshot().Left; len(d) != 1 || !d[0].At.Equal(at) || d[0].Hostname != "node4" {
			t.Errorf("node %d shows %+v", n.i, d)
		}
	}
	equal(t, nodes[:4])
	for _, n := range nodes[:4] {
		eventually(t, "memberlist gives it up", func() bool {
			if alive := n.view.Load().alive; alive != 4 {
				t.Fatalf("node %d counts %d nodes that live, want 4", n.i, alive)
			}
			return !n.gossips(leaver.self)
		})
	}

	// What it still says changes nothing, and it is refused.
	leaver.depart(at.Add(time.Hour))
	leaver.Publish(content(4, 1))
	leaver.until("nothing left to publish", func(Snapshot) bool { return leaver.pending.Load() == nil })
	if got := leaver.Snapshot().Left; len(got) != 1 || !got[0].At.Equal(at) {
		t.Errorf("after a second departure: %+v", got)
	}
	if _, err := leaver.transport.Call(context.Background(), nodes[1].self, giveRequest([32]byte{}, nil)); !errors.Is(err, noisenet.ErrTurnedAway) {
		t.Errorf("call by the leaver: %v", err)
	}
	if _, err := nodes[1].Pair(context.Background(), leaver.self, nil); !errors.Is(err, noisenet.ErrRefused) {
		t.Errorf("call to the leaver: %v", err)
	}
	if err := leaver.Leave(context.Background()); err != nil {
		t.Error(err)
	}
	leaver.stop()
	if err := leaver.Depart(context.Background(), at); !errors.Is(err, ErrNotRunning) {
		t.Errorf("departure of a node that does not run: %v", err)
	}
	for _, n := range nodes[:4] {
		if !departed(leaver.self)(n.Snapshot()) || !whole(4)(n.Snapshot()) {
			t.Errorf("node %d: %s", n.i, describe(n.Snapshot()))
		}
	}
	if got := l.log.count("sent an invalid record"); got != 0 {
		t.Errorf("%d accusations over a departure", got)
	}
}

// TestAnswersToWhoHasLeft: on a stream that is still open, a node that has left
// gets the one answer that it waits for.
func TestAnswersToWhoHasLeft(t *testing.T) {
	l := newLab(t)
	n := l.start(0)
	n.Publish(content(0, 0))
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	r := l.rogue(5, nil)
	if err := r.push(n.self, r.entry(record.Final(r.id.ID, time.Now()))); err != nil {
		t.Fatal(err)
	}
	n.until("it has left", departed(r.id.ID))
	for _, req := range [][]byte{giveRequest([32]byte{}, nil), getRequest(nil), {kindRenew, version}} {
		if _, err := n.serve(context.Background(), r.peer(), req); !errors.Is(err, ErrLeft) {
			t.Errorf("request %x: %v, want ErrLeft", req[0], err)
		}
	}
	// A revoked node is told nothing else than before.
	if err := l.rogue(6, nil).give(n.self, l.revocation(r.id.ID).Raw); err != nil {
		t.Fatal(err)
	}
	n.until("it is revoked", func(s Snapshot) bool { return len(s.Revoked) == 1 && len(s.Left) == 0 })
	if _, err := n.serve(context.Background(), r.peer(), getRequest(nil)); !errors.Is(err, ErrRevoked) {
		t.Errorf("revoked after it had left: %v", err)
	}
}

// TestTold: who knows that this node has left, by what a job with it came to.
func TestTold(t *testing.T) {
	push := job{kind: jobPush, left: true}
	sync := job{kind: jobSync, left: true}
	for name, c := range map[string]struct {
		r           result
		told, again bool
	}{
		"it has the record":               {result{job: push}, true, false},
		"it had all that this node has":   {result{job: sync, complete: true}, true, false},
		"it says so":                      {result{job: push, err: &noisenet.RemoteError{Text: ErrLeft.Error()}}, true, false},
		"it turns this node away":         {result{job: push, err: fmt.Errorf("dial: %w", noisenet.ErrTurnedAway)}, true, false},
		"it turns it away in another job": {result{job: sync, err: noisenet.ErrTurnedAway}, true, false},
		"it does not answer":              {result{job: push, err: noisenet.ErrUnreachable}, false, true},
		"it is broken":                    {result{job: push, err: &noisenet.RemoteError{Text: "message is malformed"}}, false, true},
		"no record was handed over":       {result{job: sync, err: noisenet.ErrUnreachable}, false, false},
		"the record before it":            {result{job: job{kind: jobPush}}, false, false},
		"turned away before it left":      {result{job: job{kind: jobPush}, err: noisenet.ErrTurnedAway}, false, false},
	} {
		l := &loop{c: &Cluster{prof: profiles[ProfileLocal]}}
		now, p := time.Now(), &peer{}
		l.noteTold(now, p, c.r)
		if p.told != c.told || p.pushDue != c.again || p.pushDue && !p.pushAt.After(now) {
			t.Errorf("%s: told %v, again %v", name, p.told, p.pushDue)
		}
	}
}

// TestLeftStaysOut: neither an old state of the node itself, nor a restart of
// another with an older cache, nor a colluding member that relays its records
// brings a node back that has left.
func TestLeftStaysOut(t *testing.T) {
	l := newLab(t)
	nodes := l.cluster(3)
	cached := &memoryCache{}
	keep := l.start(3, func(o *Options) { o.Cache = cached })
	keep.Publish(content(3, 0))
	old := &memoryCache{}
	victim := l.start(4, func(o *Options) { o.Cache = old })
	victim.Publish(content(4, 0))
	all := append(nodes, keep, victim)
	converge(t, all, 5)
	entry := victim.view.Load().set.Get(victim.self).Entry
	others := all[:4]
	victim.depart(time.Now())
	victim.until("all are told", told(4))
	for _, n := range others {
		n.until("it has left", departed(victim.self))
	}
	victim.stop()
	stays := func(what string) {
		t.Helper()
		for _, n := range others {
			n.until("it is still out: "+what, func(s Snapshot) bool { return len(s.Members) == 4 && departed(victim.self)(s) })
		}
	}

	// Its state of an hour ago, numbers included.
	old.entries = []record.Entry{entry}
	victim.seq.Store(0)
	l.run(victim)
	victim.Publish(content(4, 9))
	victim.until("its own new record", shows(victim.self, 4, 9))
	for _, n := range others {
		if _, err := victim.transport.Call(context.Background(), n.self, pushRequest([32]byte{}, nil)); !errors.Is(err, noisenet.ErrTurnedAway) {
			t.Errorf("call by the restored node: %v", err)
		}
	}
	stays("restored")
	victim.stop()

	// Another node, from before it left.
	keep.stop()
	cached.entries = []record.Entry{entry}
	l.run(keep)
	keep.Publish(content(3, 1))
	stays("after a restart of another")

	// Whatever it signed, with whatever certificate of its key.
	cert := l.identity(4).Cert
	cert.NotBefore = time.Now().Truncate(time.Second)
	cert.NotAfter = cert.NotBefore.Add(time.Hour)
	cert.Serial += 100
	renewed, err := l.auth.Certify(cert)
	if err != nil {
		t.Fatal(err)
	}
	r := l.rogue(8, nil)
	for _, seq := range []uint64{1000, record.FirstFinal - 1} {
		n := content(4, 7)
		n.Seq = seq
		late := l.signed(l.identity(4), n)
		late.Credential = renewed
		for range 20 {
			if err := r.push(nodes[1].self, late); err != nil {
				t.Fatal(err)
			}
		}
	}
	stays("relayed")

	// An issuer does not take the identity again.
	desk := &admissionDesk{}
	issuer := &Cluster{opts: Options{Admission: desk}, log: nodes[0].log}
	issuer.view.Store(nodes[0].view.Load())
	if _, err := issuer.admission().Issue(context.Background(), addrOf(4), keys.TokenID{1},
		keys.JoinRequest{Identity: victim.opts.Identity.Node.Public()}); !errors.Is(err, ErrLeft) || desk.issued != 0 {
		t.Errorf("a token for it: %v, %d issued", err, desk.issued)
	}
	if got := l.log.count("sent an invalid record"); got != 0 {
		t.Errorf("%d accusations", got)
	}
}

// TestLeftOnDisk: a node that restarts alone knows from its own cache who has
// left.
func TestLeftOnDisk(t *testing.T) {
	l := newLab(t)
	gone := l.identity(4)
	cache := &memoryCache{entries: []record.Entry{l.signed(gone, record.Final(gone.ID, time.Now()))}}
	n := l.start(0, func(o *Options) { o.Cache = cache })
	n.until("who has left", departed(gone.ID))
	if !n.refuse(gone.ID) {
		t.Error("the transport does not refuse it")
	}
	if len(n.Snapshot().Members) != 0 {
		t.Errorf("members: %s", describe(n.Snapshot()))
	}
}

// TestDepartedBeforeTheStart: a node whose process ended before anybody heard
// that it leaves says so when it starts again, and nothing else.
func TestDepartedBeforeTheStart(t *testing.T) {
	l := newLab(t)
	nodes := l.cluster(2)
	cache := &memoryCache{}
	leaver := l.start(2, func(o *Options) { o.Cache = cache })
	leaver.Publish(content(2, 0))
	converge(t, append(nodes, leaver), 3)
	leaver.stop()
	leaver.opts.Departed = time.Now().Truncate(time.Second)
	l.run(leaver)
	leaver.Publish(content(2, 1))
	for _, n := range nodes {
		n.until("it has left", departed(leaver.self))
		if at := n.Snapshot().Left[0].At; !at.Equal(leaver.opts.Departed) {
			t.Errorf("left at %v, want %v", at, leaver.opts.Departed)
		}
	}
	leaver.until("somebody is told", func(s Snapshot) bool { return told(1)(s) || told(2)(s) })
	converge(t, nodes, 2)
}

// TestDepartureInPartition: who is cut off when a node leaves hears it from the
// others when healed, although the node itself is gone by then.
func TestDepartureInPartition(t *testing.T) {
	l := newLab(t)
	nodes := l.cluster(4)
	converge(t, nodes, 4)
	leaver, away := nodes[3], nodes[2]
	l.net.setBroken(func(from, to ids.NodeID) bool { return from == away.self || to == away.self })
	leaver.depart(time.Now())
	leaver.until("the two that can be reached are told", told(2))
	if m, _ := leaver.Snapshot().Member(away.self); m.Told {
		t.Error("a node that was cut off counts as told")
	}
	leaver.stop()
	if departed(leaver.self)(away.Snapshot()) {
		t.Fatal("the cut lets records pass")
	}
	l.net.setBroken(nil)
	away.until("it has left, after healing", departed(leaver.self))
	converge(t, nodes[:3], 3)
}

// TestForgedDeparture: no member makes another leave.
func TestForgedDeparture(t *testing.T) {
	l := newLab(t)
	nodes := l.cluster(3)
	converge(t, nodes, 3)
	victim := l.identity(2)
	r := l.rogue(8, nil)
	body := record.Encode(record.Final(victim.ID, time.Now()))
	sig := r.id.Node.Sign(record.Domain, body[len(record.Domain):])
	forged := append(body, sig[:]...)
	for name, c := range map[string]keys.Credential{"its certificate": victim.Credential, "the forger's": r.id.Credential} {
		if err := r.push(nodes[0].self, record.Entry{Credential: c, Record: forged}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	// A final record with content, by its owner.
	own := content(8, 0)
	own.ID, own.Seq = r.id.ID, record.FirstFinal
	body = record.Encode(own)
	sig = r.id.Node.Sign(record.Domain, body[len(record.Domain):])
	if err := r.push(nodes[0].self, record.Entry{Credential: r.id.Credential, Record: append(body, sig[:]...)}); err == nil {
		t.Error("a node that has left and is somewhere: accepted")
	}
	for _, n := range nodes {
		if s := n.Snapshot(); len(s.Left) != 0 || len(s.Members) != 3 {
			t.Errorf("node %d: %+v\n%s", n.i, s.Left, describe(s))
		}
	}
}

// TestNumbersEnd: a member never publishes under a final number.
func TestNumbersEnd(t *testing.T) {
	l := newLab(t)
	id := l.identity(0)
	n := content(0, 0)
	n.Seq = record.FirstFinal - 1
	cache := &memoryCache{entries: []record.Entry{l.signed(id, n)}}
	last := l.start(0, func(o *Options) { o.Cache = cache })
	last.Publish(content(0, 1))
	l.waitLog("sequence numbers are used up")
	if s := last.Snapshot(); len(s.Left) != 0 || !shows(id.ID, 0, 0)(s) {
		t.Errorf("it shows %s", describe(s))
	}
	// It can still leave.
	last.depart(time.Now())
}

// TestNoisenetDepart: over the real transport the last answers arrive, and then
// the streams are closed.
func TestNoisenetDepart(t *testing.T) {
	l := realLab(t)
	nodes := []*node{l.startReal(0), l.startReal(1), l.startReal(2), l.startReal(3)}
	converge(t, nodes, 4)
	leaver := nodes[3]
	leaver.depart(time.Now())
	leaver.until("all are told", told(3))
	for _, n := range nodes[:3] {
		n.until("it has left", departed(leaver.self))
		eventually(t, "its streams are closed", func() bool {
			_, ok := n.transport.Peer(leaver.self)
			return !ok
		})
	}
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if _, err := leaver.transport.Call(ctx, nodes[0].self, getRequest(nil)); !errors.Is(err, noisenet.ErrTurnedAway) {
		t.Errorf("a new stream: %v, want ErrTurnedAway", err)
	}
	converge(t, nodes[:3], 3)
	if s := leaver.Snapshot(); !slices.ContainsFunc(s.Left, func(d Departed) bool { return d.ID == leaver.self }) {
		t.Error("the leaver does not know any more that it has left")
	}
}
