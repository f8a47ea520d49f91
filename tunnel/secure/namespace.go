package secure

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// Namespace is the secure namespace of one agent. It is used by one goroutine
// at a time.
type Namespace struct {
	ns   *nl.Namespace
	h    *nl.Handle
	fw   firewall
	last *Spec // of the last Set, for Verify; nil before it
}

// firewall is the nftables side, apart so that a test can make it fail.
type firewall interface {
	// read returns the table's state; one that is missing is not intact.
	read() (tableState, error)
	// write makes the table what it should be, in one transaction.
	write(have tableState, port uint16, members []Member) error
}

// sysctls of the secure namespace. A new namespace takes IPv4 settings over
// from the host's, so forwarding has to be put out explicitly.
func sysctls() []nl.Sysctl {
	s := []nl.Sysctl{
		{Key: "ipv4/ip_forward", Value: "0"},
		{Key: "ipv6/conf/all/forwarding", Value: "0"},
	}
	for _, c := range []string{"all", "default"} {
		s = append(s,
			// Source checks are WireGuard's and the firewall's work here;
			// reverse path filtering would drop packets while a peer's
			// route moves to the device of the next epoch.
			nl.Sysctl{Key: "ipv4/conf/" + c + "/rp_filter", Value: "0"},
			nl.Sysctl{Key: "ipv4/conf/" + c + "/forwarding", Value: "0"},
			nl.Sysctl{Key: "ipv6/conf/" + c + "/forwarding", Value: "0"},
			nl.Sysctl{Key: "ipv6/conf/" + c + "/disable_ipv6", Value: "0"},
			nl.Sysctl{Key: "ipv6/conf/" + c + "/accept_ra", Value: "0"},
			nl.Sysctl{Key: "ipv6/conf/" + c + "/accept_redirects", Value: "0"},
			nl.Sysctl{Key: "ipv6/conf/" + c + "/accept_dad", Value: "0"},
		)
	}
	// No link-local addresses on tunnel devices: nothing may use them.
	return append(s, nl.Sysctl{Key: "ipv6/conf/default/addr_gen_mode", Value: "1"})
}

// Ensure creates the secure namespace bound at path, or adopts the one a
// predecessor left there, and closes it: unreachable defaults, no forwarding,
// and a firewall that lets no VXLAN in if there is none yet. What adopted
// routes and members allow goes on; Set decides about them.
func Ensure(path string) (*Namespace, error) {
	ns, _, err := nl.EnsureNamespace(path)
	if err != nil {
		return nil, fmt.Errorf("ensure secure namespace: %w", err)
	}
	n := &Namespace{ns: ns, fw: &table{fd: ns.FD()}}
	if err := n.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("ensure secure namespace %s: %w", path, err), n.Close())
	}
	return n, nil
}

func (n *Namespace) prepare() error {
	// Were the host's namespace bound at path, unreachable defaults would cut
	// the host off. Refuse before anything is written.
	if err := n.notTheHosts(); err != nil {
		return err
	}
	h, err := n.ns.Handle()
	if err != nil {
		return err
	}
	n.h = h
	if _, err := n.ns.SetSysctls(sysctls()); err != nil {
		return err
	}
	if err := n.block(); err != nil {
		return err
	}
	have, err := n.fw.read()
	if err != nil {
		return err
	}
	if have.intact {
		return nil
	}
	return n.fw.write(have, 0, nil)
}

func (n *Namespace) notTheHosts() error {
	id, err := n.ns.ID()
	if err != nil {
		return err
	}
	here, err := nl.CurrentNamespace()
	if err != nil {
		return err
	}
	defer func() { _ = here.Close() }()
	if own, err := here.ID(); err != nil || own == id {
		return errors.Join(errors.New("path names the agent's own namespace"), err)
	}
	return nil
}

// NS returns the namespace for tunnel drivers and the VXLAN programmer. It is
// valid until Close or Remove.
func (n *Namespace) NS() *nl.Namespace { return n.ns }

// Set makes the namespace match spec. It changes by difference; each peer's
// route moves by one atomic replace, whatever probes it has. It goes on past a bad peer and joins the
// errors: *RouteError for a peer, ErrForeignLink for a link it had to put
// down. If the firewall cannot be set, it withdraws the inner address and all
// routes: no membership check, no traffic.
func (n *Namespace) Set(ctx context.Context, spec Spec) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := check(spec); err != nil {
		return err
	}
	kept := spec
	kept.Routes, kept.Probes, kept.Members = slices.Clone(spec.Routes), slices.Clone(spec.Probes), slices.Clone(spec.Members)
	n.last = &kept
	if err := n.rebind(); err != nil {
		return err
	}
	if _, err := n.ns.SetSysctls(sysctls()); err != nil {
		return err
	}
	foreign := n.quarantine()
	if err := n.block(); err != nil {
		return errors.Join(foreign, err)
	}
	if err := n.setFirewall(spec); err != nil {
		// Fail closed: without the table an authenticated peer could send
		// into networks it is not a member of, so nobody reaches us at all.
		return errors.Join(foreign, err, n.setInner(ctx, netip.Addr{}), n.setRoutes(nil, nil))
	}
	if err := n.setInner(ctx, spec.Inner); err != nil {
		return errors.Join(foreign, err)
	}
	return errors.Join(foreign, n.setRoutes(spec.Routes, spec.Probes))
}

// check refuses a Spec that would not mean what it says.
func check(spec Spec) error {
	if !spec.Inner.Is6() || spec.Inner.Is4In6() {
		return fmt.Errorf("set secure namespace: inner address %s is not IPv6", spec.Inner)
	}
	if spec.VXLANPort == 0 {
		return errors.New("set secure namespace: VXLAN port is zero")
	}
	seen := make(map[netip.Addr]bool, len(spec.Routes))
	for _, r := range spec.Routes {
		if !r.usable(spec.Inner) || seen[r.Peer] {
			return fmt.Errorf("set secure namespace: bad or second route to %s through %s", r.Peer, r.Device)
		}
		seen[r.Peer] = true
	}
	probed := make(map[Route]bool, len(spec.Probes))
	for _, r := range spec.Probes {
		if !r.usable(spec.Inner) || probed[r] {
			return fmt.Errorf("set secure namespace: bad or second probe of %s through %s", r.Peer, r.Device)
		}
		probed[r] = true
	}
	for _, m := range spec.Members {
		if !m.Inner.Is6() || m.Inner.Is4In6() || !m.VNI.Valid() {
			return fmt.Errorf("set secure namespace: bad member %s of network %s", m.Inner, m.VNI)
		}
	}
	return nil
}

func (r Route) usable(inner netip.Addr) bool {
	return r.Peer.Is6() && !r.Peer.Is4In6() && r.Peer != inner && r.Device != "lo" && r.Device != ""
}

func (n *Namespace) setFirewall(spec Spec) error {
	have, err := n.fw.read()
	if err != nil {
		return err
	}
	return n.fw.write(have, spec.VXLANPort, spec.Members)
}

// bound reports whether the path still names this namespace.
func (n *Namespace) bound() bool {
	at, err := nl.OpenNamespace(n.ns.Path())
	if err != nil {
		return false
	}
	defer func() { _ = at.Close() }()
	id, err := at.ID()
	own, ownErr := n.ns.ID()
	return err == nil && ownErr == nil && id == own
}

// rebind binds the namespace at its path again if somebody unmounted it;
// otherwise the next agent would make a second one beside the living tunnels.
func (n *Namespace) rebind() error {
	if n.bound() {
		return nil
	}
	path := n.ns.Path()
	if at, err := nl.OpenNamespace(path); err == nil {
		_ = at.Close()
		return fmt.Errorf("bind secure namespace: %s names another namespace", path)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|unix.O_CLOEXEC, 0o444)
	if err != nil {
		return fmt.Errorf("bind secure namespace: %w", err)
	}
	_ = f.Close()
	src := fmt.Sprintf("/proc/self/fd/%d", n.ns.FD())
	if err := unix.Mount(src, path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("bind secure namespace at %s: %w", path, err)
	}
	return nil
}

// Remove unbinds the namespace, which ends it and every link in it that was
// born there once the last driver has let go of it, and closes n.
func (n *Namespace) Remove() error {
	path := n.ns.Path()
	// Closed first and at once, in case somebody else still holds it.
	err := errors.Join(n.setInner(context.Background(), netip.Addr{}), n.setRoutes(nil, nil))
	return errors.Join(err, n.Close(), nl.RemoveNamespace(path))
}

// Close releases the references; the namespace stays.
func (n *Namespace) Close() error {
	if n.h != nil {
		n.h.Close()
	}
	return n.ns.Close()
}
