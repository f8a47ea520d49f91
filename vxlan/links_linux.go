package vxlan

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
)

func (p *Programmer) addNamespace(network string) error {
	path, err := p.path(network)
	if err != nil {
		return err
	}
	ns, err := nl.CreateNamespace(path)
	if err != nil {
		return err
	}
	return ns.Close()
}

// delNamespace deletes our links before it lets go of the namespace: the
// kernel takes a dead namespace apart some time later, and until then the
// VXLAN device would keep its VNI and the endpoints their links.
func (p *Programmer) delNamespace(network string) error {
	path, err := p.path(network)
	if err != nil {
		return err
	}
	r, err := p.open(network)
	if err == nil {
		err = r.delAll()
		p.forget(network)
	} else if errors.Is(err, nl.ErrNotNamespace) || errors.Is(err, unix.ENOENT) {
		err = nil // only a file, or nothing
	}
	return errors.Join(err, nl.RemoveNamespace(path))
}

// delAll deletes all links of the kinds we make by one request: each request
// waits until no processor uses what it deletes, which takes the same time for
// one veth pair as for a thousand (measured: 80 ms each).
func (r *room) delAll() error {
	const group = nl.RouteProtocol
	links, err := r.h.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	found := false
	for _, l := range links {
		switch l.Type() {
		case "vxlan", "bridge", "veth":
			if err := r.h.LinkSetGroup(l, group); err != nil && !nl.IsNotExist(err) {
				return fmt.Errorf("group link %s: %w", l.Attrs().Name, err)
			}
			found = true
		}
	}
	if !found {
		return nil
	}
	if err := delGroup(r, group); err != nil && !nl.IsNotExist(err) {
		return fmt.Errorf("delete links: %w", err)
	}
	return nil
}

// link returns the index of a link by name.
func (r *room) link(name string) (int, error) {
	if i, ok := r.index[name]; ok {
		return i, nil
	}
	l, err := r.h.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("find link %s: %w", name, err)
	}
	r.index[name] = l.Attrs().Index
	return l.Attrs().Index, nil
}

func (r *room) delLink(name string) error {
	clear(r.index)
	l, err := r.h.LinkByName(name)
	if nl.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := r.h.LinkDel(l); err != nil && !nl.IsNotExist(err) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

func (r *room) release(name string) error {
	l, err := r.h.LinkByName(name)
	if nl.IsNotExist(err) {
		return nil
	}
	if err == nil {
		err = r.h.LinkSetNoMaster(l)
	}
	return err
}

func (p *Programmer) addBridge(r *room, op Op) error {
	if err := r.h.LinkAdd(newBridge()); err != nil {
		return fmt.Errorf("create link %s: %w", bridgeName, err)
	}
	return p.setBridge(r, op)
}

func (p *Programmer) setBridge(r *room, op Op) error {
	l, err := r.h.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find link %s: %w", bridgeName, err)
	}
	b, ok := l.(*netlink.Bridge)
	if !ok {
		return fmt.Errorf("link %s is of kind %s", bridgeName, l.Type())
	}
	if err := r.h.LinkModify(bridgeSettings(b)); err != nil {
		return fmt.Errorf("modify bridge: %w", err)
	}
	if mac := bridgeMAC(); b.HardwareAddr.String() != mac.String() {
		if err := r.h.LinkSetHardwareAddr(b, mac[:]); err != nil {
			return fmt.Errorf("set mac of bridge: %w", err)
		}
	}
	return r.base(b, op.MTU, p.bridgeMark())
}

// base sets what all our links have: MTU, mark, up.
func (r *room) base(l netlink.Link, mtu int, mark string) error {
	if err := r.h.LinkSetAlias(l, mark); err != nil {
		return fmt.Errorf("set alias: %w", err)
	}
	if err := r.h.LinkSetMTU(l, mtu); err != nil {
		return fmt.Errorf("set mtu %d: %w", mtu, err)
	}
	if err := r.h.LinkSetUp(l); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}

// setPort puts a link into the bridge. The flags are set before the link goes
// up, so that it never forwards with the kernel's defaults.
func (r *room) setPort(name string, mtu int, mark string, flags PortFlags) error {
	index, err := r.link(name)
	if err != nil {
		return err
	}
	bridge, err := r.link(bridgeName)
	if err != nil {
		return err
	}
	l := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: name, Index: index}}
	if err := r.h.LinkSetMasterByIndex(l, bridge); err != nil {
		return fmt.Errorf("put into bridge: %w", err)
	}
	if err := setPortFlags(r, index, flags); err != nil {
		return err
	}
	return r.base(l, mtu, mark)
}

// addDevice creates the VXLAN device by a request to its birthplace that names
// the network's namespace as target: the kernel then takes the sockets' side
// from where the request was made and puts the link straight where it belongs
// (measured: IFLA_NET_NS_FD without IFLA_LINK_NETNSID). There is no instant at
// which it is in a third place, and nothing to clean up after a crash.
func (p *Programmer) addDevice(r *room, op Op) error {
	h, err := p.birthHandle(op.Device.Birth)
	if err != nil {
		return err
	}
	dev := newDevice(op.Link, op.Device)
	dev.MTU = op.MTU
	dev.Namespace = netlink.NsFd(r.ns.FD())
	if err := h.LinkAdd(dev); err != nil {
		if nl.IsExist(err) {
			return vniHolder(h, op.Device)
		}
		return fmt.Errorf("create VXLAN device in %s namespace: %w", op.Device.Birth, err)
	}
	clear(r.index)
	return nil
}

// vniHolder says who has the VNI that we were refused.
func vniHolder(h *nl.Handle, d DeviceSpec) error {
	links, err := h.LinkList()
	if err != nil {
		return errors.Join(ErrVNITaken, fmt.Errorf("list links: %w", err))
	}
	for _, l := range links {
		x, ok := l.(*netlink.Vxlan)
		if ok && ids.VNI(x.VxlanId) == d.VNI && uint16(x.Port) == d.Port {
			return fmt.Errorf("%w: VNI %s, port %d, link %s", ErrVNITaken, d.VNI, d.Port, x.Name)
		}
	}
	return fmt.Errorf("%w: VNI %s, port %d, a link that was moved to another namespace", ErrVNITaken, d.VNI, d.Port)
}

func (p *Programmer) setDevice(r *room, op Op) error {
	err := r.setPort(op.Link, op.MTU, p.deviceMark(op.Device), deviceFlags(op.Lock))
	if errors.Is(err, unix.EADDRINUSE) {
		// Going up binds the socket.
		return fmt.Errorf("%w: %d in %s namespace: %w", ErrPortTaken, op.Device.Port, op.Device.Birth, err)
	}
	return err
}
