package vxlan

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// addPort creates an endpoint's veth pair with the far end directly in the
// endpoint's namespace, under its final name and with its MAC.
func (p *Programmer) addPort(r *room, op Op) error {
	e := op.Endpoint
	if !isEndpointID(e.ID) {
		return fmt.Errorf("endpoint ID %q is not 12 hexadecimal characters", e.ID)
	}
	ns, err := openEndpoint(e)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	if err := p.mayHold(r, e.NsID); err != nil {
		return err
	}
	// For an existing pair the kernel tells in which namespace its other end
	// is. A new one must not go to a namespace that was made at the same path
	// and has the inode number of the attached one, which has ended: nobody
	// asked for that one to be on this network.
	id, err := ns.LastingID()
	if err != nil {
		return err
	}
	if !id.Is(e.NsID) {
		return fmt.Errorf("%w: %s names a later one", ErrEndpointGone, e.Netns)
	}
	veth := netlink.NewVeth(attrs(portName(e.ID)))
	veth.MTU, veth.PeerMTU = op.MTU, uint32(op.MTU)
	veth.PeerName, veth.PeerHardwareAddr = e.Ifname, e.MAC[:]
	veth.PeerNamespace = netlink.NsFd(ns.FD())
	err = r.h.LinkAdd(veth)
	clear(r.index)
	if nl.IsExist(err) {
		return nameTaken(ns, e, err)
	}
	if err != nil {
		return fmt.Errorf("create veth pair: %w", err)
	}
	return nil
}

// mayHold refuses the agent's own namespaces as homes of endpoints: a link in
// the secure namespace would be a way around the tunnels, and a bridge port
// in an overlay namespace a way between networks.
func (p *Programmer) mayHold(r *room, id nl.ID) error {
	forbidden := []*room{r}
	for _, other := range p.rooms {
		forbidden = append(forbidden, other)
	}
	if slices.ContainsFunc(forbidden, func(o *room) bool { return o.id.Is(id) }) {
		return ErrForbidden
	}
	if p.opts.Secure == nil {
		return nil
	}
	secure, err := p.opts.Secure.ID()
	if err == nil && secure.Is(id) {
		err = ErrForbidden
	}
	return err
}

// nameTaken tells which of the two names of a pair was there already.
func nameTaken(ns *nl.Namespace, e Endpoint, cause error) error {
	h, err := ns.Handle()
	if err != nil {
		return errors.Join(cause, err)
	}
	defer h.Close()
	l, err := h.LinkByName(e.Ifname)
	if err != nil {
		return fmt.Errorf("create veth pair: %w", cause)
	}
	return fmt.Errorf("%w: %s (%s) in %s", ErrNameTaken, e.Ifname, l.Type(), e.Netns)
}

// withInner calls fn with the endpoint's end of a port.
func (p *Programmer) withInner(r *room, e Endpoint, fn func(*nl.Namespace, *nl.Handle, netlink.Link) error) error {
	port, err := r.h.LinkByName(portName(e.ID))
	if err != nil {
		return fmt.Errorf("find link %s: %w", portName(e.ID), err)
	}
	ns, err := openEndpoint(e)
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	h, err := ns.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := innerLink(r, h, ns, port.Attrs())
	if err != nil {
		return err
	}
	return fn(ns, h, l)
}

// setInner sets MAC, MTU, mark and up of the endpoint's end.
func (p *Programmer) setInner(r *room, op Op) error {
	e := op.Endpoint
	return p.withInner(r, e, func(ns *nl.Namespace, h *nl.Handle, l netlink.Link) error {
		if _, err := ns.SetSysctls(innerSysctls(l.Attrs().Name, e)); err != nil {
			return err
		}
		if l.Attrs().HardwareAddr.String() != e.MAC.String() {
			if err := h.LinkSetHardwareAddr(l, e.MAC[:]); err != nil {
				return fmt.Errorf("set mac %s: %w", e.MAC, err)
			}
		}
		if op.Burst > 0 {
			// Without it (Linux before 4.16) everything works, with more calls: it is
			// set once, and neither missed nor repaired.
			_ = h.LinkSetGSOMaxSize(l, op.Burst)
		}
		inside := &room{h: h}
		if err := inside.base(l, op.MTU, p.endpointMark(e.ID)); err != nil {
			return err
		}
		// Once more: a link whose MTU was too small for IPv6 has just got the
		// settings at all.
		_, err := ns.SetSysctls(innerSysctls(l.Attrs().Name, e))
		return err
	})
}

// innerSysctls of an endpoint's link. IPv6 is off on a link without an IPv6
// address of ours: nobody asked for the second way in that a link-local
// address is. It speaks for its own addresses only: a namespace with several links,
// the host above all, would answer ARP for all of them on each. Router advertisements are refused, because any endpoint of the
// network could send them and become everybody's gateway. Duplicate address
// detection is off: addresses are the agent's to give out, and the records
// say who has which.
func innerSysctls(link string, e Endpoint) []nl.Sysctl {
	off := "1"
	if slices.ContainsFunc(e.Addrs, func(a netip.Prefix) bool { return a.Addr().Is6() }) {
		off = "0"
	}
	return []nl.Sysctl{
		{Key: "ipv4/conf/" + link + "/arp_ignore", Value: "1", Optional: true},
		{Key: "ipv4/conf/" + link + "/arp_announce", Value: "2", Optional: true},
		{Key: "ipv6/conf/" + link + "/accept_ra", Value: "0", Optional: true},
		{Key: "ipv6/conf/" + link + "/accept_dad", Value: "0", Optional: true},
		{Key: "ipv6/conf/" + link + "/disable_ipv6", Value: off, Optional: true},
	}
}

// settleTime bounds the wait for a new address; it takes a millisecond on an
// idle machine.
const settleTime = 5 * time.Second

// changeAddr adds or deletes one address of an endpoint.
func (p *Programmer) changeAddr(ctx context.Context, r *room, op Op) error {
	a := &netlink.Addr{
		IPNet: &net.IPNet{IP: op.Prefix.Addr().AsSlice(),
			Mask: net.CIDRMask(op.Prefix.Bits(), op.Prefix.Addr().BitLen())},
		Protocol: nl.RouteProtocol, // ifa_proto since Linux 5.18; ignored before
	}
	if op.Prefix.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return p.withInner(r, op.Endpoint, func(ns *nl.Namespace, h *nl.Handle, l netlink.Link) error {
		if op.Kind == OpDelAddr {
			// ENXIO: the link has no IPv6 at all by now, for its small MTU.
			if err := h.AddrDel(l, a); err != nil && !nl.IsNotExist(err) && !errors.Is(err, unix.ENXIO) {
				return fmt.Errorf("delete address %s: %w", op.Prefix, err)
			}
			return nil
		}
		if op.Prefix.Addr().Is6() {
			if _, err := ns.SetSysctls(innerSysctls(l.Attrs().Name, op.Endpoint)); err != nil {
				return err
			}
		}
		if err := h.AddrReplace(l, a); err != nil {
			return fmt.Errorf("add address %s: %w", op.Prefix, err)
		}
		// Whoever was promised an attached endpoint may bind to it at once.
		ctx, cancel := context.WithTimeout(ctx, settleTime)
		defer cancel()
		return h.WaitLocal(ctx, op.Prefix.Addr())
	})
}
