package noisenet

import (
	"crypto/rand"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// side is one end of a pair of session tables whose streams are simulated.
type side struct {
	*sessions
	id   ids.NodeID
	addr netip.AddrPort
}

func twoSides(t *testing.T) (a, b *side, now time.Time) {
	t.Helper()
	l := limits{}.withDefaults()
	mk := func(n byte) *side {
		id := ids.NodeID{n}
		return &side{sessions: newSessions(id, l, rand.Reader), id: id,
			addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 0, n}), 7946)}
	}
	a, b = mk(1), mk(2)
	a.reachable(b.id, 22)
	b.reachable(a.id, 11)
	return a, b, time.Unix(1_800_000_000, 0)
}

// opening is an OPEN under way; number makes its keys unique.
type opening struct {
	from, to      *side
	local, remote uint32
	ctx           openContext
}

// open performs OPEN up to the point where the answerer has installed.
func (a *side) openTo(t *testing.T, now time.Time, b *side, number uint32) *opening {
	t.Helper()
	o := &opening{from: a, to: b, local: must(a.reserve()), remote: must(b.reserve())}
	o.ctx = openContext{number: number, opener: o.local, answerer: o.remote, byResponder: a.id.Compare(b.id) > 0}
	var s secret
	fwd, back, err := o.ctx.keys(&s)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := b.install(now, newSession{peer: a.id, boot: b.peers[a.id].boot, openedByPeer: true,
		local: o.remote, remote: o.local, send: back, recv: fwd, addr: a.addr}); !ok {
		t.Fatal("answerer did not install")
	}
	return o
}

// finish performs OPENED and, with confirm, CONFIRM.
func (o *opening) finish(t *testing.T, now time.Time, confirm bool) []outgoing {
	t.Helper()
	var s secret
	fwd, back, err := o.ctx.keys(&s)
	if err != nil {
		t.Fatal(err)
	}
	out, ok := o.from.install(now, newSession{peer: o.to.id, boot: o.from.peers[o.to.id].boot,
		local: o.local, remote: o.remote, send: fwd, recv: back, addr: o.to.addr})
	if !ok {
		t.Fatal("opener did not install")
	}
	if confirm {
		o.to.confirm(now, o.from.id, o.remote)
	}
	return out
}

// deliver hands datagrams to b and returns the payloads it accepts.
func (b *side) deliver(t *testing.T, now time.Time, from netip.AddrPort, out []outgoing) (payloads []string, err error) {
	t.Helper()
	for _, o := range out {
		h, perr := parseDatagram(o.data)
		if perr != nil {
			t.Fatal(perr)
		}
		p, _, _, rerr := b.receive(now, from, h, o.data)
		if rerr != nil {
			err = rerr
			continue
		}
		payloads = append(payloads, string(p))
	}
	return payloads, err
}

func (a *side) mustSend(t *testing.T, now time.Time, to *side, text string) []outgoing {
	t.Helper()
	out, _, err := a.send(now, to.id, []byte(text))
	if err != nil || len(out) == 0 {
		t.Fatalf("send %q: %d datagrams, %v", text, len(out), err)
	}
	return out
}

func TestSessionsQueue(t *testing.T) {
	a, b, now := twoSides(t)
	for i := range queueLength + 4 {
		out, open, err := a.send(now, b.id, []byte{byte(i)})
		if err != nil || len(out) != 0 || open != (i == 0) {
			t.Fatalf("packet %d: %d datagrams, open %v, %v", i, len(out), open, err)
		}
	}
	out := a.openTo(t, now, b, 1).finish(t, now, true)
	got, err := b.deliver(t, now, a.addr, out)
	if err != nil || len(got) != queueLength || got[0] != string([]byte{4}) {
		t.Errorf("delivered %q, %v; want %d packets from the fifth on", got, err, queueLength)
	}
	// Packets older than two seconds are not sent.
	a.drop(b.id)
	a.reachable(b.id, 22)
	_, _, _ = a.send(now, b.id, []byte("old"))
	_, _, _ = a.send(now.Add(time.Second), b.id, []byte("new"))
	now = now.Add(queueAge + time.Second/2)
	got, _ = b.deliver(t, now, a.addr, a.openTo(t, now, b, 2).finish(t, now, true))
	if len(got) != 1 || got[0] != "new" {
		t.Errorf("delivered %q, want the new packet only", got)
	}
}

// TestSessionsReplay: security.md check 12 for datagrams.
func TestSessionsReplay(t *testing.T) {
	a, b, now := twoSides(t)
	a.openTo(t, now, b, 1).finish(t, now, true)
	var all []outgoing
	for range 3000 {
		all = append(all, a.mustSend(t, now, b, "x")...)
	}
	if got, err := b.deliver(t, now, a.addr, all); err != nil || len(got) != len(all) {
		t.Fatalf("%d of %d accepted, %v", len(got), len(all), err)
	}
	accepted := 0
	for range 10 {
		got, _ := b.deliver(t, now, a.addr, all)
		accepted += len(got)
	}
	if accepted != 0 {
		t.Errorf("%d replayed datagrams were accepted", accepted)
	}
}

func TestSessionsForgery(t *testing.T) {
	a, b, now := twoSides(t)
	a.openTo(t, now, b, 1).finish(t, now, true)
	good := a.mustSend(t, now, b, "real")
	for bit := range 8 * len(good[0].data) {
		bad := append([]byte(nil), good[0].data...)
		bad[bit/8] ^= 1 << (bit % 8)
		h, err := parseDatagram(bad)
		if err != nil {
			continue
		}
		if _, _, _, err := b.receive(now, netip.MustParseAddrPort("198.18.9.9:1"), h, bad); err == nil {
			t.Fatalf("bit %d flipped: accepted", bit)
		}
	}
	// Nothing of that moved the window or the address.
	if got, err := b.deliver(t, now, a.addr, good); err != nil || len(got) != 1 {
		t.Errorf("the real packet after the forgeries: %q, %v", got, err)
	}
	if addr, _ := b.active(now, a.id); addr != a.addr {
		t.Errorf("address moved to %v", addr)
	}
}

func TestSessionsRoaming(t *testing.T) {
	a, b, now := twoSides(t)
	a.openTo(t, now, b, 1).finish(t, now, true)
	first, second := a.mustSend(t, now, b, "1"), a.mustSend(t, now, b, "2")
	moved := netip.MustParseAddrPort("198.18.7.7:1111")
	if _, err := b.deliver(t, now, moved, second); err != nil {
		t.Fatal(err)
	}
	if addr, _ := b.active(now, a.id); addr != moved {
		t.Errorf("replies go to %v, want %v", addr, moved)
	}
	// An older packet, although valid, does not move it back.
	if _, err := b.deliver(t, now, a.addr, first); err != nil {
		t.Fatal(err)
	}
	if addr, _ := b.active(now, a.id); addr != moved {
		t.Errorf("an older packet moved the address to %v", addr)
	}
}

// TestSessionsConfirm: the answerer sends only once the opener has the keys.
func TestSessionsConfirm(t *testing.T) {
	a, b, now := twoSides(t)
	o := a.openTo(t, now, b, 1)
	if out, open, _ := b.send(now, a.id, []byte("early")); len(out) != 0 || !open {
		t.Errorf("answerer sent on an unconfirmed session")
	}
	o.finish(t, now, false)
	// The first valid packet confirms, and flushes what waited.
	out := a.mustSend(t, now, b, "x")
	h := must(parseDatagram(out[0].data))
	_, _, flushed, err := b.receive(now, a.addr, h, out[0].data)
	if err != nil || len(flushed) != 1 {
		t.Fatalf("flushed %d, %v", len(flushed), err)
	}
	if got, err := a.deliver(t, now, b.addr, flushed); err != nil || got[0] != "early" {
		t.Errorf("opener received %q, %v", got, err)
	}
}

func TestSessionsSimultaneous(t *testing.T) {
	a, b, now := twoSides(t)
	oa, ob := a.openTo(t, now, b, 1), b.openTo(t, now, a, 1)
	ob.finish(t, now, true)
	oa.finish(t, now.Add(time.Millisecond), true)
	for _, s := range []*side{a, b} {
		other := b
		if s == b {
			other = a
		}
		if best := s.peers[other.id].best(now); best.opener != a.id {
			t.Errorf("side %v sends on the session opened by %v, want the smaller ID", s.id, best.opener)
		}
	}
	for range 10 {
		if _, err := b.deliver(t, now, a.addr, a.mustSend(t, now, b, "x")); err != nil {
			t.Fatal(err)
		}
		if _, err := a.deliver(t, now, b.addr, b.mustSend(t, now, a, "y")); err != nil {
			t.Fatal(err)
		}
	}
}

func TestSessionsRekey(t *testing.T) {
	a, b, now := twoSides(t)
	a.openTo(t, now, b, 1).finish(t, now, true)
	if _, open, _ := a.send(now.Add(rekeyAge-time.Second), b.id, nil); open {
		t.Error("rekey before its time")
	}
	late := a.mustSend(t, now, b, "under way")
	now = now.Add(rekeyAge)
	if out, open, _ := a.send(now, b.id, nil); !open || len(out) != 1 {
		t.Error("opener does not rekey at the mark, or stops sending")
	}
	if _, open, _ := b.send(now, a.id, nil); open {
		t.Error("answerer rekeys at the opener's mark")
	}
	if _, open, _ := b.send(now.Add(rekeyLate), a.id, nil); !open {
		t.Error("answerer never rekeys")
	}
	a.openTo(t, now, b, 2).finish(t, now, true)
	a.openDone(now, b.id, false)
	if len(a.peers[b.id].all) != 2 || a.peers[b.id].best(now) != a.peers[b.id].all[1] {
		t.Error("the new session is not in use")
	}
	// The old one still receives for a minute.
	if got, err := b.deliver(t, now.Add(30*time.Second), a.addr, late); err != nil || len(got) != 1 {
		t.Errorf("packet under way: %q, %v", got, err)
	}
	a.expire(now.Add(supersededFor + time.Second))
	if n := len(a.peers[b.id].all); n != 1 {
		t.Errorf("%d sessions after the old one's minute", n)
	}
}

func TestSessionsHardLimits(t *testing.T) {
	a, b, now := twoSides(t)
	a.openTo(t, now, b, 1).finish(t, now, true)
	d := a.peers[b.id].all[0]
	d.counter = rekeyPackets
	if _, open, _ := a.send(now, b.id, nil); !open {
		t.Error("no rekey at the packet mark")
	}
	d.counter = refusePackets
	if out, _, _ := a.send(now, b.id, nil); len(out) != 0 {
		t.Error("sent after the packet limit")
	}
	if _, err := d.seal(now, nil); !errors.Is(err, errExhausted) {
		t.Errorf("seal after the packet limit: %v", err)
	}
	d.counter = 0
	if _, err := d.seal(now.Add(refuseAge), nil); !errors.Is(err, errExhausted) {
		t.Errorf("seal after the age limit: %v", err)
	}
	out := a.mustSend(t, now, b, "x")
	if _, err := b.deliver(t, now.Add(refuseAge), a.addr, out); !errors.Is(err, errExhausted) {
		t.Errorf("receive after the age limit: %v", err)
	}
}

func TestSessionsPerPeerLimit(t *testing.T) {
	a, b, now := twoSides(t)
	a.openTo(t, now, b, 1).finish(t, now, true)
	used := b.peers[a.id].best(now)
	for i := range uint32(20) {
		a.openTo(t, now, b, i+2) // never finished: as a peer that only opens
	}
	p := b.peers[a.id]
	if len(p.all) != sessionsPerPeer || p.best(now) != used {
		t.Errorf("%d sessions, the one in use kept: %v", len(p.all), p.best(now) == used)
	}
	b.expire(now.Add(confirmWithin))
	if len(p.all) != 1 {
		t.Errorf("%d sessions after the unconfirmed expired", len(p.all))
	}
	if len(b.byLocal) != 1 || len(b.byRemote) != 1 {
		t.Errorf("tables hold %d and %d", len(b.byLocal), len(b.byRemote))
	}
}

func TestSessionsBackoff(t *testing.T) {
	a, b, now := twoSides(t)
	want := backoffFirst
	for i := range 8 {
		_, open, _ := a.send(now, b.id, nil)
		if !open {
			t.Fatalf("attempt %d was not granted", i)
		}
		if _, open, _ = a.send(now, b.id, nil); open {
			t.Fatal("a second attempt beside the first")
		}
		a.openDone(now, b.id, true)
		wait := a.peers[b.id].next.Sub(now)
		if wait < want*3/4 || wait > want*5/4 {
			t.Errorf("attempt %d: wait %v, want %v +-25 %%", i, wait, want)
		}
		if _, open, _ = a.send(now.Add(wait-time.Millisecond), b.id, nil); open {
			t.Error("attempt within the back-off")
		}
		now = now.Add(wait)
		want = min(2*want, backoffLast)
	}
	a.reachable(b.id, 22)
	if a.peers[b.id].backoff != 0 {
		t.Error("a handshake does not end the back-off")
	}
}

func TestSessionsHint(t *testing.T) {
	a, b, now := twoSides(t)
	a.openTo(t, now, b, 1).finish(t, now, true)
	index := a.peers[b.id].best(now).remote
	hint := func(after time.Duration, i uint32) bool {
		_, open := a.hint(now.Add(after), i)
		return open
	}
	if hint(time.Minute, index+1) {
		t.Error("HINT for an index that is not in use")
	}
	if hint(a.hintQuiet-1, index) {
		t.Error("HINT for a session that is new")
	}
	back := b.mustSend(t, now, a, "alive")
	if _, err := a.deliver(t, now.Add(10*time.Second), b.addr, back); err != nil {
		t.Fatal(err)
	}
	if hint(12*time.Second, index) {
		t.Error("HINT although a packet came 2 s ago")
	}
	if !hint(14*time.Second, index) {
		t.Error("HINT in silence is ignored")
	}
	a.openDone(now.Add(14*time.Second), b.id, false)
	if hint(16*time.Second, index) {
		t.Error("HINT 2 s after the last attempt")
	}
	if !hint(20*time.Second, index) {
		t.Error("HINT 6 s after the last attempt is ignored")
	}
	// HINTs never remove a session: a forged one costs a dial at most.
	if a.peers[b.id].best(now) == nil {
		t.Error("a HINT removed the session")
	}
}

func TestSessionsBoot(t *testing.T) {
	a, b, now := twoSides(t)
	o := a.openTo(t, now, b, 1)
	o.finish(t, now, true)
	b.reachable(a.id, 11)
	if len(b.peers[a.id].all) != 1 {
		t.Error("a second stream of the same process ended the session")
	}
	b.reachable(a.id, 12)
	if len(b.peers[a.id].all) != 0 || len(b.byLocal) != 0 {
		t.Error("a new process did not end the old sessions")
	}
	// An OPEN that was under way on a stream of the old process, or of a
	// dropped peer, installs nothing.
	local := must(b.reserve())
	var s secret
	fwd, back, _ := o.ctx.keys(&s)
	n := newSession{peer: a.id, boot: 11, openedByPeer: true, local: local, remote: 5, send: back, recv: fwd}
	if _, ok := b.install(now, n); ok {
		t.Error("installed for the old process")
	}
	b.drop(a.id)
	n.boot = 12
	if _, ok := b.install(now, n); ok {
		t.Error("installed for a dropped peer")
	}
	b.release(local)
	if len(b.byLocal) != 0 {
		t.Error("release keeps the index")
	}
}
