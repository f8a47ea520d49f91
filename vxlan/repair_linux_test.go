package vxlan

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// TestRepairs damages one thing after the other on a working node; the next
// round must see it, mend it, and be quiet again.
func TestRepairs(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	one, two, three := a.attach(1), a.attach(2), b.attach(3)
	meet(a, b)
	a.sync()
	b.sync()
	onLink := func(name string, fn func(h *nl.Handle, l netlink.Link) error) func() error {
		return func() error {
			l, err := a.room().h.LinkByName(name)
			if err != nil {
				return err
			}
			return fn(a.room().h, l)
		}
	}
	inside := func(fn func(h *nl.Handle, l netlink.Link) error) func() error {
		return func() error {
			h, err := one.box.NS().Handle()
			if err != nil {
				return err
			}
			defer h.Close()
			l, err := h.LinkByName("eth0")
			if err != nil {
				return err
			}
			return fn(h, l)
		}
	}
	del := func(h *nl.Handle, l netlink.Link) error { return h.LinkDel(l) }
	down := func(h *nl.Handle, l netlink.Link) error { return h.LinkSetDown(l) }
	free := func(h *nl.Handle, l netlink.Link) error { return h.LinkSetNoMaster(l) }
	learn := func(h *nl.Handle, l netlink.Link) error { return h.LinkSetLearning(l, true) }
	unmark := func(h *nl.Handle, l netlink.Link) error { return h.LinkSetAlias(l, "somebody's") }
	small := func(h *nl.Handle, l netlink.Link) error { return h.LinkSetMTU(l, 1000) }
	port := portName(one.ID)
	remote := Forward{Device: deviceName, MAC: three.Remote.MAC, VTEP: b.spec.Local}
	elsewhere := netip.MustParseAddr("fd00:198:18::99")
	damage := map[string]func() error{
		"bridge deleted":  onLink(bridgeName, del),
		"bridge down":     onLink(bridgeName, down),
		"bridge MTU":      onLink(bridgeName, small),
		"bridge unmarked": onLink(bridgeName, unmark),
		"bridge MAC": onLink(bridgeName, func(h *nl.Handle, l netlink.Link) error {
			return h.LinkSetHardwareAddr(l, net.HardwareAddr{2, 1, 1, 1, 1, 1})
		}),
		"device deleted":         onLink(deviceName, del),
		"device down":            onLink(deviceName, down),
		"device MTU":             onLink(deviceName, small),
		"device out of bridge":   onLink(deviceName, free),
		"device learning":        onLink(deviceName, learn),
		"device floods":          onLink(deviceName, func(h *nl.Handle, l netlink.Link) error { return h.LinkSetFlood(l, true) }),
		"device not suppressing": onLink(deviceName, func(h *nl.Handle, l netlink.Link) error { return h.LinkSetBrNeighSuppress(l, false) }),
		"device unmarked":        onLink(deviceName, unmark),
		"port deleted":           onLink(port, del),
		"port down":              onLink(port, down),
		"port out of bridge":     onLink(port, free),
		"port learning":          onLink(port, learn),
		"port isolated":          onLink(port, func(h *nl.Handle, l netlink.Link) error { return h.LinkSetIsolated(l, true) }),
		"port MTU":               onLink(port, small),
		"port unlocked": func() error {
			r := a.room()
			i, err := r.link(port)
			if err != nil {
				return err
			}
			return setPortFlags(r, i, PortFlags{})
		},
		"endpoint down": inside(down),
		"endpoint MTU":  inside(small),
		"endpoint MAC": inside(func(h *nl.Handle, l netlink.Link) error {
			return h.LinkSetHardwareAddr(l, net.HardwareAddr{2, 1, 1, 1, 1, 1})
		}),
		"endpoint unmarked": inside(unmark),
		"endpoint moved away": inside(func(h *nl.Handle, l netlink.Link) error {
			return errors.Join(h.LinkSetDown(l), h.LinkSetName(l, "x"), h.LinkSetNsFd(l, two.box.NS().FD()))
		}),
		"address deleted": inside(func(h *nl.Handle, l netlink.Link) error {
			list, err := h.AddrList(l, netlink.FAMILY_V6)
			if err != nil {
				return err
			}
			return h.AddrDel(l, &list[0])
		}),
		"forward deleted": func() error { return tamper(a, deviceName, remote, (*netlink.Handle).NeighDel) },
		"forward moved": func() error {
			return tamper(a, deviceName, Forward{Device: deviceName, MAC: remote.MAC, VTEP: elsewhere}, (*netlink.Handle).NeighSet)
		},
		"foreign forward": func() error {
			return tamper(a, deviceName, Forward{Device: deviceName, MAC: mac(50), VTEP: elsewhere}, (*netlink.Handle).NeighSet)
		},
		"flood deleted": func() error {
			return tamper(a, deviceName, Forward{Device: deviceName, VTEP: b.spec.Local}, (*netlink.Handle).NeighDel)
		},
		"foreign flood": func() error {
			return tamper(a, deviceName, Forward{Device: deviceName, VTEP: elsewhere}, (*netlink.Handle).NeighAppend)
		},
		"station deleted": func() error {
			return tamper(a, deviceName, Station{MAC: remote.MAC}, (*netlink.Handle).NeighDel)
		},
		"station moved": func() error { return tamper(a, port, Station{MAC: remote.MAC}, (*netlink.Handle).NeighSet) },
		"learned station": func() error {
			return tamper(a, port, Station{MAC: mac(51), Dynamic: true}, (*netlink.Handle).NeighSet)
		},
		"neighbour deleted": func() error {
			return tamper(a, bridgeName, Neighbour{Addr: v6(3)}, (*netlink.Handle).NeighDel)
		},
		"neighbour changed": func() error {
			return tamper(a, bridgeName, Neighbour{Addr: v4(3), MAC: mac(51)}, (*netlink.Handle).NeighSet)
		},
		"foreign neighbour": func() error {
			return tamper(a, bridgeName, Neighbour{Addr: v4(77), MAC: mac(51)}, (*netlink.Handle).NeighSet)
		},
		"stray port": func() error {
			veth := netlink.NewVeth(attrs("stray"))
			veth.PeerName = "yarts"
			if err := a.room().h.LinkAdd(veth); err != nil {
				return err
			}
			i, err := a.room().link(bridgeName)
			if err != nil {
				return err
			}
			return a.room().h.LinkSetMasterByIndex(veth, i)
		},
		"something else in place of the device": func() error {
			if err := a.room().delLink(deviceName); err != nil {
				return err
			}
			return a.room().h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs(deviceName)})
		},
		"something else in place of the bridge": func() error {
			if err := a.room().delLink(bridgeName); err != nil {
				return err
			}
			veth := netlink.NewVeth(attrs(bridgeName))
			veth.PeerName = "b"
			return a.room().h.LinkAdd(veth)
		},
		"forwarding on": func() error {
			_, err := a.room().ns.SetSysctls([]nl.Sysctl{{Key: "ipv4/ip_forward", Value: "1"}})
			return err
		},
		"namespace removed": func() error {
			path := a.room().ns.Path()
			a.p.forget("blue")
			return errors.Join(nl.RemoveNamespace(path), waitGone(t, one, two))
		},
	}
	for name, hurt := range damage {
		t.Run(name, func(t *testing.T) {
			ok(t, hurt())
			if did := a.sync(); len(did) == 0 {
				t.Error("the plan does not see it")
			}
			pingBoth(t, one, three, a.spec.MTU)
			pingBoth(t, two, one, a.spec.MTU)
		})
	}
}

// tamper changes one entry of a node's network as somebody else could.
func tamper(n *node, link string, entry any, how func(*netlink.Handle, *netlink.Neigh) error) error {
	r := n.room()
	clear(r.index)
	i, err := r.link(link)
	if err != nil {
		return err
	}
	switch e := entry.(type) {
	case Forward:
		return how(r.h.Handle, forwardMsg(i, e))
	case Station:
		m := stationMsg(i, e.MAC, 0)
		if e.Dynamic {
			m.State = netlink.NUD_REACHABLE
		}
		return how(r.h.Handle, m)
	case Neighbour:
		return how(r.h.Handle, neighbourMsg(i, e))
	}
	return errors.New("unknown entry")
}

// waitGone waits until the kernel has taken a dead namespace's links away.
func waitGone(t *testing.T, members ...member) error {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for _, m := range members {
		h, err := m.box.NS().Handle()
		if err != nil {
			return err
		}
		defer h.Close()
		for {
			if _, err := h.LinkByName("eth0"); nl.IsNotExist(err) {
				break
			}
			if time.Now().After(deadline) {
				return errors.New("link of the dead namespace is still there")
			}
		}
	}
	return nil
}

// TestWrongBirthplaceIsNeverKept puts devices of every wrong birth in place
// of an encrypted network's one, with the alias of a right one.
func TestWrongBirthplaceIsNeverKept(t *testing.T) {
	w := newWorld(t, 2)
	a, b := w.nodes[0], w.nodes[1]
	one, two := a.attach(1), b.attach(2)
	meet(a, b)
	a.sync()
	b.sync()
	for name, birth := range map[string]*nl.Namespace{
		"host":     a.host.NS(),
		"itself":   a.room().ns,
		"a friend": w.outer.Switch().NS(),
	} {
		t.Run("born in "+name, func(t *testing.T) {
			r := a.room()
			ok(t, r.delLink(deviceName))
			h, err := birth.Handle()
			ok(t, err)
			defer h.Close()
			dev := newDevice(deviceName, DeviceSpec{VNI: a.spec.VNI, Local: a.spec.Local, Port: a.spec.Port})
			dev.Namespace = netlink.NsFd(r.ns.FD())
			ok(t, h.LinkAdd(dev))
			l, err := r.h.LinkByName(deviceName)
			ok(t, err)
			ok(t, r.h.LinkSetAlias(l, a.p.deviceMark(DeviceSpec{Birth: BornSecure})))
			ok(t, r.h.LinkSetUp(l))
			did := a.sync()
			if len(did) == 0 || !strings.Contains(did[0], "delete device vx0 (born ") {
				t.Errorf("the impostor is not deleted first: %q", did)
			}
			checkSockets(t, a)
			pingBoth(t, one, two, a.spec.MTU)
		})
	}
}

func TestConflictsAreNamed(t *testing.T) {
	w := newWorld(t, 1)
	a := w.nodes[0]
	a.plaintext(false)
	a.attach(1)
	red := a.spec
	red.Network, red.VNI, red.Endpoints = "red", 77, nil
	h, err := a.host.NS().Handle()
	ok(t, err)
	defer h.Close()
	foreign := newDevice(deviceName, DeviceSpec{VNI: testVNI, Local: a.spec.Local, Port: testPort})
	foreign.Name = "docker-vx"
	ok(t, h.LinkAdd(foreign))

	_, err = a.p.Sync(context.Background(), []Spec{a.spec, red})
	if !errors.Is(err, ErrVNITaken) || !strings.Contains(err.Error(), "docker-vx") {
		t.Errorf("sync beside a foreign device = %v", err)
	}
	// The other network is not held up, and the foreign device untouched.
	ops, err := a.p.Sync(context.Background(), []Spec{a.spec, red})
	for _, op := range ops {
		if op.Network == "red" {
			t.Errorf("not done in the first round: %s", op)
		}
	}
	if !errors.Is(err, ErrVNITaken) {
		t.Errorf("second sync = %v", err)
	}
	l, err := h.LinkByName("docker-vx")
	ok(t, err)
	ok(t, h.LinkDel(l))
	ok(t, a.p.Remove(context.Background()))

	var c net.PacketConn
	ok(t, a.host.NS().Do(func() (err error) {
		c, err = net.ListenPacket("udp4", "0.0.0.0:4789")
		return err
	}))
	_, err = a.p.Sync(context.Background(), []Spec{a.spec})
	if !errors.Is(err, ErrPortTaken) {
		t.Errorf("sync beside a bound port = %v", err)
	}
	ok(t, c.Close())
	a.sync()
}

func TestBadEndpointsHoldNobodyUp(t *testing.T) {
	w := newWorld(t, 1)
	a := w.nodes[0]
	good, taken, gone, other := a.attach(1), a.attach(2), a.attach(3), a.attach(4)
	ctx := context.Background()
	h, err := taken.box.NS().Handle()
	ok(t, err)
	defer h.Close()
	ok(t, h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs("eth0")}))
	e := a.spec.Endpoints
	e[2].Netns += "-not-there"
	e[3].NsID.Ino++ // the path names another namespace by now
	secure := endpoint(t, a.secure.Box, 5)
	overlay := endpoint(t, good.box, 6)
	ok(t, os.MkdirAll(a.p.opts.Dir, 0o755))
	overlay.Netns, _ = a.p.path("blue")
	ns, err := nl.CreateNamespace(overlay.Netns)
	ok(t, err)
	overlay.NsID, err = ns.ID()
	ok(t, err)
	ok(t, ns.Close())
	a.spec.Endpoints = append(e, secure, overlay)

	want := map[string]error{taken.ID: ErrNameTaken, gone.ID: ErrEndpointGone, other.ID: ErrEndpointGone,
		secure.ID: ErrForbidden, overlay.ID: ErrForbidden}
	for range 2 { // the second round reports the same
		_, err = a.p.Sync(ctx, []Spec{a.spec})
		for id, cause := range want {
			if e := blamed(err, id); !errors.Is(e, cause) {
				t.Errorf("endpoint %s: %v, want %v", id, e, cause)
			}
		}
		if e := blamed(err, good.ID); e != nil {
			t.Errorf("good endpoint: %v", e)
		}
	}
	if n := a.observe().Networks[0]; len(n.Ports) != 1 || n.Ports[0].Where != InnerThere {
		t.Errorf("ports = %+v", n.Ports)
	}
	// What was there before an endpoint's path went stays.
	a.spec.Endpoints = e[:1]
	a.sync()
	a.spec.Endpoints[0].Netns += "-renamed"
	if did := a.sync(); len(did) != 0 {
		t.Errorf("an endpoint whose path is gone was touched: %q", did)
	}
}

// blamed finds the *Error of one endpoint in a joined error.
func blamed(err error, endpoint string) error {
	var e *Error
	if joined, isJoined := err.(interface{ Unwrap() []error }); isJoined {
		for _, part := range joined.Unwrap() {
			if found := blamed(part, endpoint); found != nil {
				return found
			}
		}
		return nil
	}
	if errors.As(err, &e) && e.Endpoint == endpoint {
		return e
	}
	return nil
}

// TestNamespaceMadeAnew ends an endpoint's namespace and makes another at the
// same path, which gets the same inode number: it must not be put on the
// network in the first one's place.
func TestNamespaceMadeAnew(t *testing.T) {
	w := newWorld(t, 1)
	a := w.nodes[0]
	path := filepath.Join(t.TempDir(), "container")
	first, err := nl.CreateNamespace(path)
	ok(t, err)
	t.Cleanup(func() { _ = nl.RemoveNamespace(path) })
	id, err := first.LastingID()
	ok(t, err)
	a.spec.Endpoints = []Endpoint{{
		ID: "00000000000a", MAC: mac(10), Netns: path, NsID: id, Ifname: "eth0",
		Addrs: []netip.Prefix{netip.PrefixFrom(v4(10), 24)},
	}}
	a.sync()
	ok(t, first.Close())
	ok(t, nl.RemoveNamespace(path))
	again := false
	for range 200 {
		// The number is free when the kernel has taken the namespace apart.
		a.settleGone()
		second, err := nl.CreateNamespace(path)
		ok(t, err)
		now, err := second.ID()
		ok(t, errors.Join(err, second.Close()))
		if again = now.Ino == id.Ino; again {
			break
		}
		ok(t, nl.RemoveNamespace(path))
	}
	if !again {
		t.Log("the kernel did not use the number again; another number is refused as well")
	}
	_, err = a.p.Sync(context.Background(), []Spec{a.spec})
	if e := blamed(err, "00000000000a"); !errors.Is(e, ErrEndpointGone) {
		t.Errorf("endpoint in a namespace made anew: %v", e)
	}
	if n := a.observe().Networks[0]; len(n.Ports) != 0 {
		t.Errorf("ports = %+v", n.Ports)
	}
}

// settleGone waits until the port of an endpoint whose namespace has ended is
// gone, which the kernel does some time later.
func (n *node) settleGone() {
	n.w.t.Helper()
	tick, end := time.NewTicker(time.Millisecond), time.After(10*time.Second)
	defer tick.Stop()
	for len(n.observe().Networks[0].Ports) != 0 {
		select {
		case <-tick.C:
		case <-end:
			n.w.t.Fatal("the port of an endpoint whose namespace ended is still there")
		}
	}
}
