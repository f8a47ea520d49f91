package agent

import (
	"errors"
	"net"
	"net/netip"

	"github.com/secure-overlay/secure-overlay/agent/resolver"
	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// namer answers for the names of networks; *resolver.Server.
type namer interface {
	Set(zones []resolver.Zone) error
	Close() error
}

// buildNames writes what endpoints can be called, for each network that has the
// gateway here. An endpoint that lost a dispute is not there, on any node.
func (b *build) buildNames() {
	for _, n := range b.nets {
		e, ok := b.gatewayOf(n)
		if !ok || !n.wanted {
			continue
		}
		z := resolver.Zone{
			Network: n.Name, Subnets: n.Subnets, Internal: n.Internal, Names: map[string][]netip.Addr{}, Reverse: map[netip.Addr]string{},
		}
		for _, a := range e.Addrs {
			z.Listen = append(z.Listen, a.Addr())
		}
		add := func(addrs []netip.Addr, names []string) {
			for i, name := range names {
				if name == "" {
					continue
				}
				z.Names[name] = append(z.Names[name], addrs...)
				for _, a := range addrs {
					if i == 0 {
						z.Reverse[a] = name
					}
				}
			}
		}
		for _, l := range n.local {
			if l.Ready { // others do not know it earlier either
				add(hostsOf(l.Addrs), append([]string{l.Name}, l.Services...))
			}
		}
		for _, r := range n.remote {
			add(r.addrs, r.names)
		}
		b.out.Names = append(b.out.Names, z)
	}
}

func hostsOf(prefixes []netip.Prefix) []netip.Addr {
	out := make([]netip.Addr, len(prefixes))
	for i, p := range prefixes {
		out[i] = p.Addr()
	}
	return out
}

// applyNames makes the resolvers answer.
func (l *loop) applyNames() {
	x := &l.exits
	if x.names == nil || x.ns == nil {
		return
	}
	if err := x.names.Set(l.out.Names); err != nil {
		l.failAll("names-failed", "", err)
	}
}

// listen opens the sockets of a resolver in a namespace.
func listen(ns *nl.Namespace, at netip.AddrPort) (packets net.PacketConn, streams net.Listener, err error) {
	err = ns.Do(func() error {
		if packets, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at)); err != nil {
			return err
		}
		if streams, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)); err != nil {
			return errors.Join(err, packets.Close())
		}
		return nil
	})
	if err != nil {
		return nil, nil, err // not interfaces around nil pointers
	}
	return packets, streams, nil
}
