package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/tunneltest"
)

// installed lists what a node's devices hold: key and SPIs of each pair.
func (m *machine) installed() (out []string) {
	m.w.t.Helper()
	m.look(func(l *loop) {
		l.refresh(context.Background())
		for _, d := range l.facts.Devices {
			for _, p := range d.Peers {
				out = append(out, fmt.Sprintf("epoch %d, peer %s: key %s in %s out %s", d.Epoch, p.Inner, p.Key, p.In, p.Out))
			}
		}
	})
	return out
}

// TestRestartOnESP: an agent that starts without any record keeps every pair's
// associations, whose addresses only the kernel knows then.
func TestRestartOnESP(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b, c := w.machine(1, blue()), w.machine(2, blue()), w.machine(3, blue())
		for _, m := range []*machine{a, b, c} {
			m.ipsec = true
			m.start()
		}
		w.until("epoch 1", func() bool { return a.on(1, 2) && b.on(1, 2) && c.on(1, 2) })
		a.rotate(api.RotateRequest{Driver: config.DriverIPsec})
		w.until("epoch 2", func() bool { return a.on(2, 2) && b.on(2, 2) && c.on(2, 2) })
		before := b.installed()
		if len(before) != 2 {
			t.Fatalf("installed: %q", before)
		}
		b.kill()
		w.board.set(func() { w.board.lonely = b.id })
		b.start()
		same := func() bool { return slices.Equal(b.installed(), before) }
		w.watch("every pair, without records", 2*time.Second, same)
		w.board.set(func() { w.board.lonely = ids.NodeID{} })
		w.watch("every pair, with records", 2*time.Second, same)
		if !a.on(2, 2) || !b.on(2, 2) || !c.on(2, 2) {
			t.Errorf("after the restart: %+v", b.keys())
		}
	})
}

// muteDriver cannot say what there is while mute is set, as a driver whose
// worker does not answer, and counts what it is told to set.
type muteDriver struct {
	tunnel.Driver
	mute *atomic.Bool
	sets *atomic.Int32
}

func (d muteDriver) State(ctx context.Context) (tunnel.State, error) {
	s, err := d.Driver.State(ctx)
	if !d.mute.Load() {
		return s, err
	}
	// What the link itself tells, not what the worker knows.
	for i := range s.Devices {
		s.Devices[i] = tunnel.DeviceState{Name: s.Devices[i].Name, Epoch: s.Devices[i].Epoch, Up: true}
	}
	return s, errors.New("read device: worker does not answer")
}

func (d muteDriver) Set(ctx context.Context, s tunnel.Spec) error {
	d.sets.Add(1)
	return d.Driver.Set(ctx, s)
}

// TestDriverSilentAtStart: until a driver that may have devices here has said
// so, an agent sets nothing, and the others go on with what they know of this
// node. Then it adopts all of it.
func TestDriverSilentAtStart(t *testing.T) {
	for target := ids.Epoch(1); target <= 2; target++ {
		t.Run(fmt.Sprint("target ", target), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a, b := w.machine(1, blue()).start(), w.machine(2, blue()).start()
				w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
				a.mustAttach("blue", "/run/netns/c1")
				before := a.installed()
				a.kill()
				record := w.board.record(a.id)
				published, _ := w.board.publishedBy(a.id, 0)
				syncs, guardSets := len(a.overlay.since(0)), len(a.guard.since(0))
				if target > 1 { // a rotation begins while the agent is away
					w.board.aim(target, config.DriverAuto)
				}
				<-time.After(time.Second)
				var mute atomic.Bool
				var sets atomic.Int32
				mute.Store(true)
				a.driver = func(d tunnel.Driver) tunnel.Driver { return muteDriver{d, &mute, &sets} }
				a.start()
				w.watch("nothing set, nothing published", 3*time.Second, func() bool {
					n, _ := w.board.publishedBy(a.id, 0)
					return sets.Load() == 0 && n == published && len(a.overlay.since(syncs)) == 0 && len(a.guard.since(guardSets)) == 0 && epochTo(b, a) == 1
				})
				if s := a.status(); s.Ready || !hasProblem(s, "tunnel-unreadable") {
					t.Errorf("ready %t, problems %v", s.Ready, s.Problems)
				}
				mute.Store(false)
				w.until("the target", func() bool { return a.on(target, 1) && b.on(target, 1) })
				if after := a.installed(); target == 1 && !slices.Equal(after, before) {
					t.Errorf("adopted %q of %q", after, before)
				}
				if c := a.keys().Counts; target == 1 && (c.Rotations != 0 || c.Switches != 0) {
					t.Errorf("counts what began before this agent: %+v", c)
				}
				_, records := w.board.publishedBy(a.id, published)
				if target > 1 && len(records) == 0 {
					t.Fatal("nothing was published")
				}
				if len(records) > 0 {
					first := records[0].Tunnels
					if len(first) == 0 || first[0] != record.Tunnels[0] || len(records[0].Attached) != 1 {
						t.Errorf("the first record has tunnels %+v and %d endpoints", first, len(records[0].Attached))
					}
				}
				for i, s := range a.guard.since(guardSets) {
					if len(s.Routes) != 1 {
						t.Errorf("round %d set routes %v", i+1, s.Routes)
					}
				}
			})
		})
	}
}

// TestSwitchSecondsAfterRestart: an agent that starts within a rotation cannot
// say how long ago that was asked for.
func TestSwitchSecondsAfterRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()).start(), w.machine(2, blue()).start()
		w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
		a.kill()
		w.board.aim(2, config.DriverAuto)
		<-time.After(time.Second)
		a.start()
		w.until("epoch 2", func() bool { return a.on(2, 1) && b.on(2, 1) })
		if c := a.keys().Counts; c.Switches != 1 || c.SwitchSeconds != 0 {
			t.Errorf("counts of the agent that was away: %+v", c)
		}
		if c := b.keys().Counts; c.Switches != 1 || c.SwitchSeconds < 1 || c.SwitchSeconds > 10 {
			t.Errorf("counts of the agent that was there: %+v", c)
		}
	})
}

// TestAdoptKnows: a driver that this kernel lacks has nothing here; one that
// cannot be opened for another reason may have.
func TestAdoptKnows(t *testing.T) {
	for _, c := range []struct {
		name string
		err  error
		want bool
	}{
		{"no devices", nil, true},
		{"not supported", fmt.Errorf("open: %w", tunnel.ErrNotSupported), true},
		{"the kernel lacks its family", fmt.Errorf("open: %w", unix.EOPNOTSUPP), true},
		{"busy", errors.New("open: worker does not answer"), false},
	} {
		kind := tunneltest.NewFabric().Kind()
		open := kind.Open
		kind.Open = func(ctx context.Context, env tunnel.Env) (tunnel.Driver, error) {
			if c.err != nil {
				return nil, c.err
			}
			return open(ctx, env)
		}
		d := newDrivers([]tunnel.Kind{kind}, tunnel.Env{Node: ids.NodeID{1}}, slog.New(slog.DiscardHandler), time.Now)
		d.adopt(context.Background())
		if got := d.known(); got != c.want {
			t.Errorf("%s: known %t, want %t", c.name, got, c.want)
		}
		c.err = nil
		if errs := d.read(context.Background()); len(errs) > 0 || !d.known() {
			t.Errorf("%s: once it opens: %v, known %t", c.name, errs, d.known())
		}
	}
}

// TestDeviceDown: a device that exists and is down carries nothing, so nothing
// counts on it.
func TestDeviceDown(t *testing.T) {
	in := pairSim(t).nodes[0].in
	for _, up := range []bool{true, false} {
		in.Tunnels.Devices[0].Up = up
		if _, ok := in.Tunnels.device(1); ok != up {
			t.Errorf("up %t: device found %t", up, ok)
		}
		if o := in.observe(Desired(in), rotate.Observation{}); len(o.Devices) == 1 != up {
			t.Errorf("up %t: observed %+v", up, o.Devices)
		}
	}
}
