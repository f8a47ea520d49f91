package vxlan

import (
	"fmt"

	"github.com/vishvananda/netlink"
	rtnl "github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// sysctls of a network's namespace. It forwards frames, never packets: no IP
// address, no router, no IPv6 chatter of its own on bridge or ports.
func sysctls() []nl.Sysctl {
	s := []nl.Sysctl{
		// A new namespace takes IPv4 forwarding over from the host's.
		{Key: "ipv4/ip_forward", Value: "0"},
		{Key: "ipv6/conf/all/forwarding", Value: "0"},
		{Key: "ipv6/conf/default/forwarding", Value: "0"},
		{Key: "ipv6/conf/all/accept_ra", Value: "0"},
		{Key: "ipv6/conf/default/accept_ra", Value: "0"},
		// The bridge answers ND from its IPv6 neighbour table, which exists
		// only while IPv6 is on; without a link-local address it stays mute.
		{Key: "ipv6/conf/all/disable_ipv6", Value: "0"},
		{Key: "ipv6/conf/default/disable_ipv6", Value: "0"},
		{Key: "ipv6/conf/default/addr_gen_mode", Value: "1"},
		{Key: "ipv6/conf/" + bridgeName + "/disable_ipv6", Value: "0", Optional: true},
		{Key: "ipv6/conf/" + bridgeName + "/addr_gen_mode", Value: "1", Optional: true},
	}
	// There are no rules here for bridged frames to be shown to.
	for _, f := range []string{"arptables", "ip6tables", "iptables"} {
		s = append(s, nl.Sysctl{Key: "bridge/bridge-nf-call-" + f, Value: "0", Optional: true})
	}
	return s
}

// mark is the alias of our links: "secure-overlay/", the node, what it is.
func (p *Programmer) mark(what string) string {
	return fmt.Sprintf("secure-overlay/%s/%s", p.opts.Node, what)
}

func (p *Programmer) bridgeMark() string             { return p.mark("bridge") }
func (p *Programmer) deviceMark(d DeviceSpec) string { return p.mark("vxlan/" + string(d.Birth)) }
func (p *Programmer) endpointMark(id string) string  { return p.mark("endpoint/" + id) }

func attrs(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs() // queue length -1: the kernel's choice
	a.Name = name
	return a
}

// bridgeMAC is the bridge's own address in every network, where it is only
// ever seen locally. It must be a set one: a bridge without takes the least of
// its ports' addresses, and with each change the kernel forgets all
// neighbours, permanent ones too (measured).
func bridgeMAC() ids.MAC { return ids.MAC{0x02, 's', 'o', 'b', 'r', '0'} }

// newBridge describes br0 for creation; setBridge does the rest.
func newBridge() *netlink.Bridge {
	b := &netlink.Bridge{LinkAttrs: attrs(bridgeName)}
	mac := bridgeMAC()
	b.HardwareAddr = mac[:]
	return b
}

// bridgeSettings returns what to change on a bridge that has just been read:
// no snooping, so that broadcast and multicast go to every port without any
// state; no VLANs, so that a MAC has one FDB entry. Only what differs is named:
// a kernel built without one of these refuses even to turn it off.
func bridgeSettings(have *netlink.Bridge) *netlink.Bridge {
	off, none := false, uint16(0)
	// By name, without the index: a request with both is taken for a renaming,
	// which kernels before 6.2 refuse for a link that is up (EBUSY), even to the
	// same name.
	b := &netlink.Bridge{LinkAttrs: attrs(bridgeName)}
	if have.MulticastSnooping != nil && *have.MulticastSnooping {
		b.MulticastSnooping = &off
	}
	if have.VlanFiltering != nil && *have.VlanFiltering {
		b.VlanFiltering = &off
	}
	if have.VlanDefaultPVID != nil && *have.VlanDefaultPVID != 0 {
		b.VlanDefaultPVID = &none
	}
	return b
}

// newDevice describes a VXLAN device. UDP checksums stay on for both families: RFC 6935
// permits zero ones over IPv6 only where the payload is protected otherwise,
// a plaintext network has nothing else, and with checksum offload inside the
// packet the outer one costs next to nothing (local checksum offload).
func newDevice(name string, d DeviceSpec) *netlink.Vxlan {
	return &netlink.Vxlan{
		LinkAttrs: attrs(name),
		VxlanId:   int(d.VNI),
		// Explicit, so that a host with several addresses never sends from
		// one that the peers do not expect; it also decides the family.
		SrcAddr:  d.Local.AsSlice(),
		Port:     int(d.Port),
		TTL:      64,
		Learning: false, // forwarding comes from signed records only
		UDPCSum:  true,
		NoAge:    true,
	}
}

// isPlain reports whether a device has all the properties that newDevice
// gives and no others.
func isPlain(v *netlink.Vxlan) bool {
	grouped := v.Group != nil && !v.Group.IsUnspecified()
	return !v.Learning && !v.Proxy && !v.RSC && !v.L2miss && !v.L3miss &&
		!v.GBP && !v.FlowBased && !v.VniFilter && !v.UDP6ZeroCSumTx && !v.UDP6ZeroCSumRx &&
		v.VtepDevIndex == 0 && !grouped
}

// Neighbour messages for the three tables. States: NUD_PERMANENT means "does
// not age" for VXLAN and for IP neighbours, but "own address" for a bridge,
// where NUD_NOARP is the static one.

func forwardMsg(link int, f Forward) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: link, Family: unix.AF_BRIDGE, Flags: netlink.NTF_SELF,
		State: netlink.NUD_PERMANENT | netlink.NUD_NOARP, HardwareAddr: f.MAC[:], IP: f.VTEP.AsSlice()}
}

func stationMsg(link int, mac ids.MAC, vlan int) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: link, Family: unix.AF_BRIDGE, Flags: netlink.NTF_MASTER,
		State: netlink.NUD_NOARP, HardwareAddr: mac[:], Vlan: vlan}
}

func neighbourMsg(link int, n Neighbour) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: link, State: netlink.NUD_PERMANENT,
		HardwareAddr: n.MAC[:], IP: n.Addr.AsSlice()}
}

// entryMsg is the request about an entry (struct ndmsg, rtnetlink(7)).
func entryMsg(typ uint16, flags int, n *netlink.Neigh) nl.Request {
	family := n.Family
	if family == 0 {
		family = rtnl.GetIPFamily(n.IP)
	}
	msg := netlink.Ndmsg{
		Family: uint8(family), Index: uint32(n.LinkIndex), State: uint16(n.State), Flags: uint8(n.Flags), //nolint:gosec // as the kernel has them
	}
	body := msg.Serialize()
	if n.IP != nil {
		ip := n.IP.To4()
		if ip == nil {
			ip = n.IP.To16()
		}
		body = append(body, rtnl.NewRtAttr(netlink.NDA_DST, ip).Serialize()...)
	}
	body = append(body, rtnl.NewRtAttr(netlink.NDA_LLADDR, n.HardwareAddr).Serialize()...)
	if n.Vlan != 0 {
		body = append(body, rtnl.NewRtAttr(netlink.NDA_VLAN, rtnl.Uint16Attr(uint16(n.Vlan))).Serialize()...) //nolint:gosec // 12 bits
	}
	return nl.Request{Type: typ, Flags: flags, Body: body}
}

// portFlags reads the flags of all bridge ports, by link index. The netlink
// library reads one port at a time and not all flags.
func portFlags(r *room) (map[int]PortFlags, error) {
	req := r.h.Request(unix.RTM_GETLINK, unix.NLM_F_DUMP)
	req.AddData(rtnl.NewIfInfomsg(unix.AF_BRIDGE))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, 0)
	if err != nil {
		return nil, fmt.Errorf("list bridge ports: %w", err)
	}
	out := make(map[int]PortFlags)
	for _, m := range msgs {
		info := rtnl.DeserializeIfInfomsg(m)
		list, err := nl.ParseAttrs(m[info.Len():])
		if err != nil {
			return nil, fmt.Errorf("parse bridge port: %w", err)
		}
		for _, a := range list {
			if a.Attr.Type&rtnl.NLA_TYPE_MASK != unix.IFLA_PROTINFO {
				continue
			}
			if out[int(info.Index)], err = parseFlags(a.Value); err != nil {
				return nil, fmt.Errorf("parse bridge port: %w", err)
			}
		}
	}
	return out, nil
}

// flagAttrs are the flags that we set, with the value for wantedFlags.
func flagAttrs(want PortFlags) map[int]bool {
	return map[int]bool{
		rtnl.IFLA_BRPORT_LEARNING:       want.Learning,
		rtnl.IFLA_BRPORT_UNICAST_FLOOD:  want.Flood,
		rtnl.IFLA_BRPORT_LOCKED:         want.Lock,
		rtnl.IFLA_BRPORT_NEIGH_SUPPRESS: want.Suppress,
		rtnl.IFLA_BRPORT_ISOLATED:       want.Isolated,
		// Open is the rest.
		rtnl.IFLA_BRPORT_BCAST_FLOOD:    true,
		rtnl.IFLA_BRPORT_MCAST_FLOOD:    true,
		rtnl.IFLA_BRPORT_MODE:           false, // hairpin
		rtnl.IFLA_BRPORT_PROXYARP:       false,
		rtnl.IFLA_BRPORT_PROXYARP_WIFI:  false,
		rtnl.IFLA_BRPORT_MCAST_TO_UCAST: false,
		rtnl.IFLA_BRPORT_VLAN_TUNNEL:    false,
	}
}

func parseFlags(raw []byte) (PortFlags, error) {
	list, err := nl.ParseAttrs(raw)
	if err != nil {
		return PortFlags{}, err
	}
	f := PortFlags{NoLock: true, Open: true}
	open := flagAttrs(PortFlags{})
	for _, a := range list {
		if len(a.Value) == 0 {
			continue
		}
		on := a.Value[0] != 0
		switch t := int(a.Attr.Type & rtnl.NLA_TYPE_MASK); t {
		case rtnl.IFLA_BRPORT_LEARNING:
			f.Learning = on
		case rtnl.IFLA_BRPORT_UNICAST_FLOOD:
			f.Flood = on
		case rtnl.IFLA_BRPORT_LOCKED:
			f.Lock, f.NoLock = on, false
		case rtnl.IFLA_BRPORT_NEIGH_SUPPRESS:
			f.Suppress = on
		case rtnl.IFLA_BRPORT_ISOLATED:
			f.Isolated = on
		default:
			if want, ok := open[t]; ok && on != want {
				f.Open = false
			}
		}
	}
	return f, nil
}

// setPortFlags writes the flags in one request: all or none.
func setPortFlags(r *room, link int, want PortFlags) error {
	req := r.h.Request(unix.RTM_SETLINK, unix.NLM_F_ACK)
	msg := rtnl.NewIfInfomsg(unix.AF_BRIDGE)
	msg.Index = int32(link)
	req.AddData(msg)
	info := rtnl.NewRtAttr(unix.IFLA_PROTINFO|unix.NLA_F_NESTED, nil)
	for attr, on := range flagAttrs(want) {
		value := byte(0)
		if on {
			value = 1
		}
		info.AddRtAttr(attr, []byte{value})
	}
	req.AddData(info)
	if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("set bridge port flags: %w", err)
	}
	return nil
}

// delGroup deletes all links of a group by one request.
func delGroup(r *room, group uint32) error {
	req := r.h.Request(unix.RTM_DELLINK, unix.NLM_F_ACK)
	req.AddData(rtnl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(rtnl.NewRtAttr(unix.IFLA_GROUP, rtnl.Uint32Attr(group)))
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
