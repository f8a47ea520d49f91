package ipsec

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// guarded returns the peers whose inner source address the kernel checks, and
// errors for the others, which must not be installed.
//
// An association's selector is looked at only where policies are, and the
// setting disable_policy of an underlay device switches policies off for what
// arrives there. Seen on Linux 6.1: with net.ipv6.conf.eth0.disable_policy=1,
// 20 of 20 packets with another member's inner source passed over an IPv6
// underlay, 0 of 20 without. Whoever could do that could speak in networks that
// it is not a member of, so such a peer has to do without a tunnel. The setting
// is the administrator's; it is not ours to change.
func (d *driver) guarded(peers []tunnel.Peer) ([]tunnel.Peer, []error, error) {
	locals := map[netip.Addr]bool{}
	for _, p := range peers {
		for _, k := range p.Keys {
			if k.ESP.Local.IsValid() {
				locals[k.ESP.Local] = true
			}
		}
	}
	open, err := d.uncheckedAddrs(locals)
	if err != nil || len(open) == 0 {
		return peers, nil, err
	}
	var out []tunnel.Peer
	var errs []error
	for _, p := range peers {
		kept := make([]tunnel.PeerKey, 0, len(p.Keys))
		for _, k := range p.Keys {
			sysctl, bad := open[k.ESP.Local]
			if !bad {
				kept = append(kept, k)
				continue
			}
			err := fmt.Errorf("epoch %d lane %d: net/%s is not 0: the kernel would not check the inner source of packets to %s",
				k.Epoch, k.Lane, sysctl, k.ESP.Local)
			errs = append(errs, &tunnel.PeerError{Peer: p.ID, Err: err})
		}
		p.Keys = kept
		out = append(out, p)
	}
	return out, errs, nil
}

// uncheckedAddrs returns those of this host's addresses for which policies are
// switched off, with the setting that does it.
func (d *driver) uncheckedAddrs(locals map[netip.Addr]bool) (map[netip.Addr]string, error) {
	if len(locals) == 0 {
		return nil, nil
	}
	devices, err := d.devicesOf(locals)
	if err != nil {
		return nil, err
	}
	by := map[string][]netip.Addr{} // addresses by setting
	var want []nl.Sysctl
	for a := range locals {
		family := "ipv6"
		if a.Is4() {
			family = "ipv4"
		}
		for _, device := range []string{"all", devices[a]} {
			key := family + "/conf/" + device + "/disable_policy"
			if by[key] == nil && device != "" {
				want = append(want, nl.Sysctl{Key: key, Value: "0", Optional: device != "all"})
			}
			by[key] = append(by[key], a)
		}
	}
	drift, err := d.env.Host.SysctlDrift(want)
	if err != nil {
		return nil, err
	}
	out := map[netip.Addr]string{}
	for _, key := range drift {
		for _, a := range by[key] {
			out[a] = key
		}
	}
	return out, nil
}

// devicesOf returns the names of the devices that have the addresses.
func (d *driver) devicesOf(locals map[netip.Addr]bool) (map[netip.Addr]string, error) {
	addrs, err := d.host.AddrList(nil, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("list addresses of the host: %w", err)
	}
	out := map[netip.Addr]string{}
	names := map[int]string{}
	for _, a := range addrs {
		ip, _ := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); !locals[ip] {
			continue
		}
		if names[a.LinkIndex] == "" {
			l, err := d.host.LinkByIndex(a.LinkIndex)
			if err != nil {
				return nil, fmt.Errorf("find the device of %s: %w", ip, err)
			}
			names[a.LinkIndex] = l.Attrs().Name
		}
		out[ip] = names[a.LinkIndex]
	}
	return out, nil
}
