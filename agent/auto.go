package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// What all nodes encrypt with has to be one protocol, so where nobody names a driver, one
// node chooses for all: who asks for an epoch, by what the nodes' records say that
// they are able to. The choice is in the target that the issuer signs, so all nodes
// have the same one.

// reprobeAble is how long a driver that did not work, and that nobody waits for, counts as not working.
const reprobeAble = time.Hour

// able is what this node could make devices with, were it asked to.
func (d *drivers) able(ctx context.Context, cfg config.Config) (out record.Able) {
	if !cfg.AnyEncrypted() {
		return 0
	}
	pinned := cfg.Driver()
	for name, bit := range map[string]record.Able{config.DriverWireGuard: record.AbleKernelWireGuard, config.DriverIPsecUser: record.AbleFastESP} {
		k, ok := d.kind(name)
		if !ok || k.Auto == nil || pinned != config.DriverAuto && pinned != name {
			continue
		}
		if k.Auto() == nil && d.worksSince(ctx, name, reprobeAble) == nil {
			out |= bit
		}
	}
	return out
}

// candidate is a node for which a driver is chosen.
type candidate struct {
	name string // for people
	able record.Able
}

// autoDriver chooses for all nodes, and says why. WireGuard, if at both ends of most pairs the kernel
// does it, which is faster than anything else: then the few others have to do with it in a process. Else userspace
// ESP, which is faster than that, if all can and have it fast. Else WireGuard, which everybody can.
func autoDriver(nodes []candidate) (driver, because string) {
	n, kernel := len(nodes), 0
	for _, c := range nodes {
		if c.able&record.AbleKernelWireGuard != 0 {
			kernel++
		}
	}
	if pairs := func(n int) int { return n * (n - 1) / 2 }; kernel > 0 && 2*pairs(kernel) >= pairs(n) {
		return item.DriverAuto, fmt.Sprintf("WireGuard, which the kernels of %d of %d nodes have", kernel, n)
	}
	for _, c := range nodes {
		if c.able&record.AbleFastESP == 0 {
			return item.DriverAuto, fmt.Sprintf("WireGuard: it is in the kernels of %d of %d nodes only, but %s has no fast userspace ESP", kernel, n, c.name)
		}
	}
	if n == 0 {
		return item.DriverAuto, "WireGuard, since no node has encrypted networks"
	}
	return item.DriverAutoESP, fmt.Sprintf("userspace ESP, which all %d nodes have fast; %d of them have WireGuard in the kernel", n, kernel)
}

// candidates are the nodes that the next epoch is for: all with encrypted networks, whether
// they are heard or not, since they are to be reached when they are back. Whose word counts nowhere else
// has none here either: observers, and nodes whose certificate ended.
func (l *loop) candidates() (out []candidate) {
	if l.here.AnyEncrypted() {
		out = append(out, candidate{name: "this node", able: l.facts.Able})
	}
	for _, m := range l.gossip.Snapshot().Members {
		silent := l.gone(m.ID) || m.Cert.Roles&keys.RoleObserver != 0 || l.standings[m.ID].standing >= ended
		if m.ID != l.identity.ID && !silent && encrypts(m.Record) {
			out = append(out, candidate{name: "node " + l.shown(m.ID), able: m.Record.Able})
		}
	}
	return out
}

func encrypts(r record.Node) bool {
	return slices.ContainsFunc(r.Networks, func(n record.Network) bool { return n.Encrypted || n.Both })
}

// nextDriver is the driver of an epoch that is asked for without naming one: the present
// one if somebody has named it, else what is best for all by now.
func (l *loop) nextDriver() string {
	if !item.Automatic(l.target.Driver) {
		return l.target.Driver
	}
	driver, _ := autoDriver(l.candidates())
	return driver
}

// autoSettle and keys.min_interval together are how long another driver has to have been
// the best one before an epoch is asked for only to have it. Meanwhile nodes join,
// start or leave, and their records arrive.
const autoSettle = 15 * time.Second

// autoDue reports whether another driver has been the best one for long enough. Only
// issuers ask, and who rotates on command only means it.
func (l *loop) autoDue() bool {
	if l.cfg.Keys.RotateEvery == 0 || !l.canIssue || l.facts.Driver == "" || l.nextDriver() == l.target.Driver {
		l.rot.otherSince = time.Time{}
		return false
	}
	if l.rot.otherSince.IsZero() {
		l.rot.otherSince = l.now()
	}
	return l.now().Sub(l.rot.otherSince) >= autoSettle+l.cfg.Keys.MinInterval
}
