package secure

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Observe reads what the kernel has and changes nothing.
func (n *Namespace) Observe(ctx context.Context) (State, error) {
	if err := ctx.Err(); err != nil {
		return State{}, err
	}
	s := State{Bound: n.bound()}
	drift, err := n.ns.SysctlDrift(sysctls())
	if err != nil {
		return State{}, err
	}
	s.Tuned = len(drift) == 0
	if err := n.observeLinks(&s); err != nil {
		return State{}, err
	}
	if err := n.observeRoutes(&s); err != nil {
		return State{}, err
	}
	fw, err := n.fw.read()
	if err != nil {
		return State{}, err
	}
	s.Intact, s.Port, s.Members = fw.intact, fw.port, fw.members
	s.Accepted, s.Dropped = fw.accepted, fw.dropped
	return s, nil
}

func (n *Namespace) observeLinks(s *State) error {
	links, err := n.foreign()
	if err != nil {
		return err
	}
	for _, l := range links {
		s.Foreign = append(s.Foreign, describe(l))
	}
	lo, err := n.h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	s.Blocked = lo.Attrs().Flags&net.FlagUp != 0
	addrs, err := n.innerAddrs()
	if err != nil {
		return err
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			s.Inner = append(s.Inner, ip.Unmap())
		}
	}
	return nil
}

func (n *Namespace) observeRoutes(s *State) error {
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		ok, err := n.blocked(family)
		if err != nil {
			return err
		}
		s.Blocked = s.Blocked && ok
	}
	links, err := n.h.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	routes, err := n.peerRoutes()
	if err != nil {
		return err
	}
	tables, wrong, err := n.probeTables()
	if err != nil {
		return err
	}
	s.Strays = len(wrong)
	used := map[string]bool{}
	for _, r := range routes {
		device := names[r.link]
		table, probed := tables[device]
		switch {
		case r.table == unix.RT_TABLE_MAIN:
			s.Routes = append(s.Routes, Route{Peer: r.peer, Device: device})
		case probed && table == r.table:
			s.Probes = append(s.Probes, Route{Peer: r.peer, Device: device})
			used[device] = true
		default:
			s.Strays++
		}
	}
	s.Strays += len(tables) - len(used)
	slices.SortFunc(s.Routes, compareRoutes)
	slices.SortFunc(s.Probes, compareRoutes)
	return nil
}

func compareRoutes(a, b Route) int {
	if c := a.Peer.Compare(b.Peer); c != 0 {
		return c
	}
	return strings.Compare(a.Device, b.Device)
}

// Verify compares the kernel with the Spec of the last Set without changing
// anything: nil, or an error that matches ErrForeignLink, ErrNoDevice or
// ErrDrift for each thing found. Before the first Set it checks what Ensure
// promises.
func (n *Namespace) Verify(ctx context.Context) error {
	s, err := n.Observe(ctx)
	if err != nil {
		return err
	}
	var errs []error
	drift := func(ok bool, what string) {
		if !ok {
			errs = append(errs, fmt.Errorf("%w: %s", ErrDrift, what))
		}
	}
	for _, f := range s.Foreign {
		errs = append(errs, foreignError(f))
	}
	drift(s.Bound, "the path no longer names it")
	drift(s.Tuned, "sysctls")
	drift(s.Blocked, "lo or an unreachable default")
	drift(s.Intact, "nftables table "+tableName)
	if n.last == nil {
		return errors.Join(errs...)
	}
	want := n.last
	drift(slices.Equal(s.Inner, []netip.Addr{want.Inner}), "inner address")
	drift(s.Port == want.VXLANPort, "VXLAN port of the firewall")
	members := slices.Compact(slices.SortedFunc(slices.Values(want.Members), compareMembers))
	drift(slices.Equal(s.Members, members), "members")
	drift(s.Strays == 0, "routes or routing rules of ours that mean nothing")
	for _, k := range []struct {
		what       string
		want, have []Route
	}{{"route to", want.Routes, s.Routes}, {"probe of", want.Probes, s.Probes}} {
		for _, r := range k.want {
			if !slices.Contains(k.have, r) {
				errs = append(errs, n.routeFault(r))
			}
		}
		for _, r := range k.have {
			drift(slices.Contains(k.want, r), k.what+" "+r.Peer.String()+" through "+r.Device)
		}
	}
	return errors.Join(errs...)
}

// routeFault says why a wanted route is missing.
func (n *Namespace) routeFault(r Route) error {
	link, err := n.h.LinkByName(r.Device)
	if err != nil || !isTunnel(link) || link.Attrs().Flags&net.FlagUp == 0 {
		return &RouteError{Route: r, Err: ErrNoDevice}
	}
	return &RouteError{Route: r, Err: ErrDrift}
}
