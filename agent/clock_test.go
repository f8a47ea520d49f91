package agent

import (
	"context"
	"maps"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/events"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/clock"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// TestSetBack: when WireGuard's next handshake will be refused.
func TestSetBack(t *testing.T) {
	low, self, high := ids.NodeID{1}, ids.NodeID{2}, ids.NodeID{3}
	now := time.Now()
	facts := func(lead time.Duration, peer ids.NodeID, wire record.Wire) TunnelFacts {
		p := tunnel.PeerState{Inner: peer.InnerAddr(), LastHandshake: now.Round(0).Add(lead)}
		return TunnelFacts{Devices: []OwnDevice{{
			DeviceState: tunnel.DeviceState{Epoch: 4, Up: true, Public: keys.TunnelPublic{1}, Peers: []tunnel.PeerState{p}}, Wire: wire,
		}}}
	}
	for name, c := range map[string]struct {
		lead   time.Duration
		peer   ids.NodeID
		wire   record.Wire
		route  ids.Epoch
		target ids.Epoch
		want   bool
	}{
		"right":                           {-time.Minute, high, record.WireWireGuard, 4, 4, false},
		"an old handshake":                {-400 * 24 * time.Hour, high, record.WireWireGuard, 4, 4, false},
		"a little back":                   {stampLead, high, record.WireWireGuard, 4, 4, false},
		"back":                            {stampLead + time.Second, high, record.WireWireGuard, 4, 4, true},
		"ten years back":                  {3652 * 24 * time.Hour, high, record.WireWireGuard, 4, 4, true},
		"the peer initiates":              {time.Hour, low, record.WireWireGuard, 4, 4, false},
		"ESP has no dates":                {time.Hour, high, record.WireESP, 4, 4, false},
		"another epoch is coming":         {time.Hour, high, record.WireWireGuard, 4, 5, false},
		"the pair is on another device":   {time.Hour, high, record.WireWireGuard, 3, 4, false},
		"a device that is not there":      {time.Hour, high, record.WireWireGuard, 5, 5, false},
		"the pair has no route":           {time.Hour, high, record.WireWireGuard, 0, 4, false},
		"no handshake yet on this device": {now.Round(0).Sub(time.Time{}) * -1, high, record.WireWireGuard, 4, 4, false},
	} {
		got := facts(c.lead, c.peer, c.wire).setBack(now, self, c.target, map[ids.NodeID]ids.Epoch{c.peer: c.route})
		if got != c.want {
			t.Errorf("%s: %t", name, got)
		}
	}
}

// dated dates what a driver says of handshakes ahead, as WireGuard does after the
// clock has been put back.
type dated struct {
	tunnel.Driver
	by *atomic.Int64
}

func (d dated) State(ctx context.Context) (tunnel.State, error) {
	s, err := d.Driver.State(ctx)
	for i, dev := range s.Devices {
		for j, p := range dev.Peers {
			// Only what was before: a new device is dated by the present clock.
			if dev.Epoch == 1 && !p.LastHandshake.IsZero() {
				s.Devices[i].Peers[j].LastHandshake = p.LastHandshake.Add(time.Duration(d.by.Load()))
			}
		}
	}
	return s, err
}

// TestClockWentBack: the node whose clock went back asks for the next epoch, once,
// and the pair moves there before its session ends.
func TestClockWentBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		var by atomic.Int64
		a, b := w.machine(1, blue()), w.machine(2, blue()).start() // a initiates
		a.driver = func(d tunnel.Driver) tunnel.Driver { return dated{d, &by} }
		a.start()
		w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
		by.Store(int64(24 * time.Hour))
		w.until("epoch 2", func() bool { return a.on(2, 1) && b.on(2, 1) })
		if r := a.keys().Target.Reason; r != item.ReasonClock.String() {
			t.Errorf("made for %q", r)
		}
		<-time.After(5 * time.Minute)
		if e := a.keys().Target.Epoch; e != 2 {
			t.Errorf("the cluster rotates on: epoch %d", e)
		}
	})
}

// TestSigns: how long ago a tunnel shook hands does not depend on what the clock
// was set to meanwhile.
func TestSigns(t *testing.T) {
	now := time.Now()
	state := func(dated time.Time) []OwnDevice {
		return []OwnDevice{{DeviceState: tunnel.DeviceState{Name: "so0", Peers: []tunnel.PeerState{{Public: keys.TunnelPublic{1}, LastHandshake: dated}}}}}
	}
	var s signs
	age := func(after time.Duration, dated time.Time) time.Duration {
		t.Helper()
		devices := state(dated)
		s.see(now.Add(after), devices)
		at, ok := s.at("so0", devices[0].Peers[0])
		if ok != !dated.IsZero() {
			t.Fatalf("seen: %t", ok)
		}
		return now.Add(after).Sub(at)
	}
	wall := now.Round(0)
	if age(0, time.Time{}); len(s.of) != 0 {
		t.Error("remembers a handshake that never was")
	}
	if got := age(time.Second, wall.Add(-time.Hour)); got != time.Hour+time.Second {
		t.Errorf("one of before this agent: %v ago", got)
	}
	// The next one is dated by a clock that is a day ahead, then two days back.
	for i, off := range []time.Duration{24 * time.Hour, -48 * time.Hour, 0} {
		base := time.Duration(i+1) * time.Minute
		stamp := wall.Add(base + off)
		if got := age(base+time.Second, stamp); got != 0 {
			t.Errorf("%v off: just seen, %v ago", off, got)
		}
		if got := age(base+31*time.Second, stamp); got != 30*time.Second {
			t.Errorf("%v off: half a minute later, %v ago", off, got)
		}
		shown := s.shown(now.Add(base+31*time.Second), "so0", state(stamp)[0].Peers[0])
		if d := shown.Sub(wall.Add(base)); d < 0 || d > maxUnseen {
			t.Errorf("%v off: shown %v off", off, d)
		}
	}
	s.see(now.Add(time.Hour), nil)
	if len(s.of) != 0 {
		t.Error("remembers peers that are gone")
	}
	// A date that has not come says nothing about an age.
	var young signs
	young.see(now, state(wall.Add(time.Hour)))
	if at, _ := young.at("so0", state(wall)[0].Peers[0]); !at.Equal(now) {
		t.Errorf("from the future: seen at %v", at)
	}
}

func TestAheadOf(t *testing.T) {
	now := time.Now()
	snap := func(ahead ...time.Duration) membership.Snapshot {
		s := membership.Snapshot{Self: ids.NodeID{1}, Members: []membership.Member{
			{ID: ids.NodeID{1}, Clock: now.Add(-time.Hour), ClockAt: now},
			{ID: ids.NodeID{2}},
			{ID: ids.NodeID{3}, Clock: now.Add(-9 * time.Hour), ClockAt: now.Add(-freshClock - time.Second)},
		}}
		for i, d := range ahead {
			// As it was five seconds ago.
			s.Members = append(s.Members, membership.Member{
				ID: ids.NodeID{byte(10 + i)}, Clock: now.Round(0).Add(-d - 5*time.Second), ClockAt: now.Add(-5 * time.Second),
			})
		}
		return s
	}
	for _, c := range []struct {
		others []time.Duration
		want   time.Duration
	}{
		{nil, 0},
		{[]time.Duration{time.Hour}, time.Hour},
		{[]time.Duration{-time.Hour, 0, 2 * time.Second}, 0},
		{[]time.Duration{24 * time.Hour, 24 * time.Hour, 0}, 24 * time.Hour},
		{[]time.Duration{-24 * time.Hour, -24*time.Hour + time.Second, 400 * 24 * time.Hour}, -24*time.Hour + time.Second},
	} {
		if got, n := aheadOf(snap(c.others...), now); got != c.want || n != len(c.others) {
			t.Errorf("%v: ahead by %v of %d", c.others, got, n)
		}
	}
}

func TestClockProblem(t *testing.T) {
	tolerance := 5 * time.Minute
	for name, c := range map[string]struct {
		r     clock.Reading
		ahead time.Duration
		code  string
	}{
		"right":                  {},
		"a little off":           {ahead: tolerance},
		"behind":                 {clock.Reading{Behind: time.Hour, Jump: -time.Hour}, -time.Hour, "clock-behind"},
		"put forward":            {clock.Reading{Jump: 24 * time.Hour}, 24 * time.Hour, "clock-jumped"},
		"put back a little":      {clock.Reading{Jump: -6 * time.Minute}, 0, "clock-jumped"},
		"ahead of the others":    {clock.Reading{}, tolerance + time.Second, "clock-differs"},
		"behind the others":      {clock.Reading{}, -tolerance - time.Second, "clock-differs"},
		"trusted, and all right": {clock.Reading{Known: true, Trusted: time.Now()}, 0, ""},
	} {
		p, ok := clockProblem(c.r, c.ahead, tolerance)
		if ok != (c.code != "") || p.Code != c.code || ok && (p.Message == "" || p.Fix == "") {
			t.Errorf("%s: %+v", name, p)
		}
	}
}

// TestCertificateEnds: what others have in the kernel for a node whose certificate
// has run out goes a day after its end, by the trusted time, and not because a
// system clock says that it is ten years later.
func TestCertificateEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		start := time.Now()
		// passed is time in which nobody looked, by all clocks; off is what the system
		// clock was set by.
		var off, passed atomic.Int64
		system := func() time.Time { return time.Now().Add(time.Duration(off.Load() + passed.Load())) }
		steady := func() time.Duration { return time.Since(start) + time.Duration(passed.Load()) }
		left := 10 * time.Hour
		a, b, c := w.machine(1, blue()), w.machine(2, blue()), w.machine(3, blue())
		for _, m := range []*machine{a, b, c} {
			m.clock = clock.New(clock.Options{Trusted: start, Reach: start.Add(20 * day), System: system, Steady: steady})
			m.cert = keys.Cert{NotBefore: start.Add(-10 * day), NotAfter: start.Add(20 * day)}
		}
		b.cert = keys.Cert{NotBefore: start.Add(left - 30*day), NotAfter: start.Add(left)}
		log, err := events.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = log.Close() }()
		a.events = log
		for _, m := range []*machine{a, b, c} {
			m.start()
		}
		w.until("all pairs", func() bool { return a.on(1, 2) && b.on(1, 2) && c.on(1, 2) })
		codes := func(m *machine) (out []string) {
			for _, p := range m.status().Problems {
				out = append(out, p.Code)
			}
			return out
		}
		if got := codes(a); !slices.Contains(got, "peer-certificate-expiring") {
			t.Errorf("ten hours before the end: %q", got)
		}
		off.Store(int64(3652 * day))
		w.watch("all pairs, ten years later by the clock", time.Minute, func() bool { return a.on(1, 2) && b.on(1, 2) && c.on(1, 2) })
		if got := codes(a); !slices.Contains(got, "peer-certificate-expired") || !slices.Contains(got, "clock-jumped") || a.status().State != api.StateDegraded {
			t.Errorf("ten years ahead: %q", got)
		}
		off.Store(0)
		w.until("no clock problem", func() bool { return !slices.Contains(codes(a), "clock-jumped") })

		passed.Store(int64(left + endGrace - 5*time.Minute))
		w.watch("all pairs, within the grace", 20*time.Second, func() bool { return a.on(1, 2) && c.on(1, 2) })
		if got := codes(a); !slices.Contains(got, "peer-certificate-expired") {
			t.Errorf("after the end: %q", got)
		}
		passed.Add(int64(5 * time.Minute))
		w.until("the pair between the others only", func() bool { return a.on(1, 1) && c.on(1, 1) && a.peers() == 1 && c.peers() == 1 })
		if got := codes(a); !slices.Contains(got, "peer-certificate-ended") {
			t.Errorf("a day after the end: %q", got)
		}
		// Ten years ahead all three have expired, and one of them once more in its time.
		kinds := map[string]int{}
		list, err := log.Read(events.Query{Kinds: []string{
			string(api.EventCertificateExpired), string(api.EventCertificateEnded), string(api.EventClock),
		}})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range list {
			kinds[e.Kind]++
		}
		if want := map[string]int{"certificate-expired": 4, "certificate-ended": 1, "clock": 2}; !maps.Equal(kinds, want) {
			t.Errorf("events %v, want %v", kinds, want)
		}
	})
}
