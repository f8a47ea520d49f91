package agent

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// TestAutoDriver: kernel WireGuard where most pairs have it, userspace ESP where all can, else userspace
// WireGuard, and the node that decides is named.
func TestAutoDriver(t *testing.T) {
	const kernel, esp, both = record.AbleKernelWireGuard, record.AbleFastESP, record.AbleKernelWireGuard | record.AbleFastESP
	for name, c := range map[string]struct {
		able   []record.Able
		want   string
		reason string
	}{
		"nobody":                {nil, item.DriverAuto, "no node"},
		"one alone, kernel":     {[]record.Able{both}, item.DriverAuto, "kernels of 1 of 1"},
		"one alone, none":       {[]record.Able{esp}, item.DriverAutoESP, "all 1 nodes"},
		"all have it":           {[]record.Able{kernel, both}, item.DriverAuto, "kernels of 2 of 2"},
		"one of two has it":     {[]record.Able{esp, both}, item.DriverAutoESP, "1 of them"},
		"two of three have it":  {[]record.Able{esp, both, both}, item.DriverAutoESP, "2 of them"},
		"three of four have it": {[]record.Able{both, both, esp, both}, item.DriverAuto, "kernels of 3 of 4"},
		"most, and one cannot":  {[]record.Able{both, both, 0, both}, item.DriverAuto, "kernels of 3 of 4"},
		"few, and one cannot":   {[]record.Able{both, esp, kernel}, item.DriverAuto, "but c has no fast"},
		"all can do ESP":        {[]record.Able{esp, esp}, item.DriverAutoESP, "all 2 nodes"},
		"one cannot":            {[]record.Able{esp, 0}, item.DriverAuto, "but b has no fast"},
		"of a newer build":      {[]record.Able{esp | 0x80, esp | 0x40}, item.DriverAutoESP, "all 2 nodes"},
	} {
		var nodes []candidate
		for i, a := range c.able {
			nodes = append(nodes, candidate{name: string(rune('a' + i)), able: a})
		}
		if got, because := autoDriver(nodes); got != c.want || !strings.Contains(because, c.reason) {
			t.Errorf("%s: %s, because %s; want %s, because of %q", name, got, because, c.want, c.reason)
		}
	}
}

// TestAble: what works here and is good enough, unless the configuration has named something
// else.
func TestAble(t *testing.T) {
	const kernel, esp = record.AbleKernelWireGuard, record.AbleFastESP
	missing := errors.New("missing")
	slow := fakeKind(config.DriverIPsecUser, nil)
	slow.Auto = func() error { return missing }
	fast := fakeKind(config.DriverIPsecUser, nil)
	for name, c := range map[string]struct {
		drivers []string // of networks
		kinds   []tunnel.Kind
		want    record.Able
	}{
		"both":                 {[]string{"auto"}, []tunnel.Kind{fakeKind(config.DriverWireGuard, nil), fast}, kernel | esp},
		"no kernel":            {[]string{"auto"}, []tunnel.Kind{fakeKind(config.DriverWireGuard, missing), fast}, esp},
		"slow cipher":          {[]string{"auto"}, []tunnel.Kind{fakeKind(config.DriverWireGuard, missing), slow}, 0},
		"neither":              {[]string{"auto"}, []tunnel.Kind{fakeKind(config.DriverUserspace, nil)}, 0},
		"another is named":     {[]string{"auto", "userspace"}, []tunnel.Kind{fakeKind(config.DriverWireGuard, nil), fast}, 0},
		"WireGuard is named":   {[]string{"wireguard"}, []tunnel.Kind{fakeKind(config.DriverWireGuard, nil), fast}, kernel},
		"ESP is named":         {[]string{"ipsec-userspace"}, []tunnel.Kind{fakeKind(config.DriverWireGuard, nil), fast}, esp},
		"nothing is encrypted": {nil, []tunnel.Kind{fakeKind(config.DriverWireGuard, nil), fast}, 0},
	} {
		var cfg config.Config
		for _, d := range c.drivers {
			cfg.Networks = append(cfg.Networks, config.Network{Name: "n" + d, Encrypted: true, Driver: d})
		}
		d := newDrivers(c.kinds, tunnel.Env{}, slog.New(slog.DiscardHandler), time.Now)
		if got := d.able(context.Background(), cfg); got != c.want {
			t.Errorf("%s: %#x, want %#x", name, got, c.want)
		}
	}
}

// driverOf is what a node's only device is made with; empty: it has none, or several.
func (m *machine) driverOf() string {
	if d := m.keys().Devices; len(d) == 1 {
		return d[0].Driver
	}
	return ""
}

// TestAutoFollowsNodes: nodes that can all do userspace ESP go over to it by themselves;
// epochs that follow without a driver stay there; a node that cannot brings all
// back to WireGuard, and they go over again when it has left.
func TestAutoFollowsNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b, c := w.machine(1, blue()), w.machine(2, blue()), w.machine(3, blue())
		for _, m := range []*machine{a, b} {
			m.userESP = true
			m.cfg.Keys.RotateEvery, m.cfg.Keys.MinInterval = 12*time.Hour, 10*time.Second
		}
		a.issuer = true
		a.start()
		b.start()
		w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
		w.watch("epoch 1 while things may change", 20*time.Second, func() bool { return a.keys().Target.Epoch == 1 })
		both := func(driver string) func() bool {
			return func() bool {
				return a.driverOf() == driver && b.driverOf() == driver && a.on(a.keys().Target.Epoch, 1)
			}
		}
		w.within(30*time.Second, "userspace ESP", both(config.DriverIPsecUser))
		if k := a.keys().Target; k.Epoch != 2 || k.Driver != item.DriverAutoESP || k.Reason != "driver" {
			t.Errorf("target = %+v", k)
		}
		r := b.rotate(api.RotateRequest{})
		if r.Driver != item.DriverAutoESP || !strings.Contains(strings.Join(r.Effects, "; "), "driver auto is userspace ESP") {
			t.Errorf("rotation without a driver: %+v", r)
		}
		w.within(30*time.Second, "epoch 3, still ESP", func() bool { return a.on(3, 1) && both(config.DriverIPsecUser)() })
		w.watch("nothing to change", 2*time.Minute, func() bool { return a.keys().Target.Epoch == 3 })

		c.start()
		w.until("the third node to say that it cannot follow", func() bool {
			return strings.Contains(strings.Join(texts(c.status().Problems), ";"), "ipsec-userspace is not available")
		})
		w.within(45*time.Second, "all on WireGuard", func() bool { return a.on(4, 2) && b.on(4, 2) && c.on(4, 2) })
		if k := a.keys().Target; k.Driver != item.DriverAuto || k.Reason != "driver" {
			t.Errorf("target = %+v", k)
		}
		if _, err := c.leave(false); err != nil {
			t.Fatal(err)
		}
		w.within(45*time.Second, "userspace ESP again", both(config.DriverIPsecUser))
	})
}

func texts(problems []api.Problem) (out []string) {
	for _, p := range problems {
		out = append(out, p.Message)
	}
	return out
}

// TestAutoAsksWhoCounts: an observer, whose record nobody else acts upon, does not hold the others back.
func TestAutoAsksWhoCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b, c := w.machine(1, blue()), w.machine(2, blue()), w.machine(3, blue())
		for _, m := range []*machine{a, b} {
			m.userESP = true
			m.cfg.Keys.RotateEvery = 12 * time.Hour
		}
		a.issuer = true
		for _, m := range []*machine{a, b, c} {
			m.start()
		}
		w.until("epoch 1", func() bool { return a.on(1, 2) && b.on(1, 2) && c.on(1, 2) })
		w.watch("WireGuard, for the third", time.Minute, func() bool { return a.keys().Target.Epoch == 1 })
		w.board.set(func() {
			e := w.board.members[c.id]
			e.Cert.Roles |= keys.RoleObserver
			w.board.members[c.id] = e
		})
		w.within(time.Minute, "userspace ESP", func() bool { return a.keys().Target.Driver == item.DriverAutoESP })
	})
}

// TestAutoLeavesNamedAlone: a driver that somebody has named stays, and so does one on a
// node whose keys change on command only.
func TestAutoLeavesNamedAlone(t *testing.T) {
	for name, c := range map[string]struct {
		every time.Duration
		named bool
	}{
		"named":           {12 * time.Hour, true},
		"only on command": {0, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t)
				a, b := w.machine(1, blue()), w.machine(2, blue())
				for _, m := range []*machine{a, b} {
					m.userESP = true
					m.cfg.Keys.RotateEvery = c.every
				}
				a.issuer = true
				a.start()
				b.start()
				w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
				epoch := ids.Epoch(1)
				if c.named {
					epoch = a.rotate(api.RotateRequest{Driver: config.DriverIPsecUser}).To
					w.until("the driver that was named", func() bool { return a.on(epoch, 1) && b.on(epoch, 1) })
					b.userESP = false // as far as others will know once it is back
					b.kill()
					b.start()
				}
				w.watch("what was", 5*time.Minute, func() bool { return a.keys().Target.Epoch == epoch })
			})
		})
	}
}
