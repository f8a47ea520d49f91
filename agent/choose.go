package agent

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/secure-overlay/secure-overlay/agent/ipam"
	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/nearest"
	"github.com/secure-overlay/secure-overlay/internal/netdef"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

func (l *loop) unknownNetwork(name string) error {
	var names []string
	for _, n := range l.here.Networks {
		names = append(names, n.Name)
	}
	for _, n := range l.unusedNetworks() {
		names = append(names, n.Name)
	}
	return api.NewError(api.CodeNotFound, fmt.Sprintf("there is no network %q", name), nearestNetwork(name, names))
}

// nearestNetwork says which network may have been meant.
func nearestNetwork(name string, names []string) string {
	if near, ok := nearest.Of(name, names); ok {
		return "did you mean " + near + "?"
	}
	if len(names) > 0 {
		return "the networks are: " + strings.Join(names, ", ")
	}
	return "secure-overlay network create, or add it to the configuration; there are no networks yet"
}

// addresses chooses one address for each subnet, the wanted ones first.
func (l *loop) addresses(in Input, view NetworkView, n config.Network, wanted []netip.Addr) ([]netip.Prefix, error) {
	var out []netip.Prefix
	have := map[netip.Prefix]bool{}
	used := usedOn(in, n)
	for _, a := range wanted {
		subnet, err := checkWanted(in, n, a.Unmap(), used)
		if err != nil {
			return nil, err
		}
		have[subnet] = true
		out = append(out, netip.PrefixFrom(a.Unmap(), subnet.Bits()))
	}
	for _, p := range out {
		if err := l.ownBlock(in, view, n, p.Addr()); err != nil {
			return nil, err
		}
	}
	taken := func(a netip.Addr) bool { _, ok := used[a]; return ok }
	for _, subnet := range n.Subnets {
		if have[subnet] {
			continue
		}
		a, ok := pickAddr(n.Options, subnet, view.Settled, taken)
		if !ok {
			if !slices.Contains(view.Full, subnet) {
				// There is a block that is not settled, or the next round
				// claims one, since this one has used up the last.
				return nil, &waitError{l.waitingIn(view, subnet)}
			}
			return nil, api.NewError(api.CodeRefused, fmt.Sprintf("network %s has no free address in %s for this node", n.Name, subnet),
				"secure-overlay status says who has the blocks; or give an address with --ip")
		}
		out = append(out, netip.PrefixFrom(a, subnet.Bits()))
	}
	if len(out) > record.MaxAddrs {
		return nil, api.NewError(api.CodeInvalid, fmt.Sprintf("%d addresses, an endpoint has at most %d", len(out), record.MaxAddrs), "")
	}
	return out, nil
}

// waitingIn says what keeps this node from having a free address in a subnet.
func (l *loop) waitingIn(view NetworkView, subnet netip.Prefix) string {
	for _, block := range view.Blocks {
		if why := l.waiting(ipam.Block{Network: view.Name, Prefix: block}); why != "" && isBlock(subnet, block) {
			return why
		}
	}
	return fmt.Sprintf("this node has yet to claim a block of addresses in %s", subnet)
}

// ownBlock reports why an explicit address cannot be given yet, or at all: its block
// has to be this node's, like that of any other. Nobody's block becomes so.
func (l *loop) ownBlock(in Input, view NetworkView, n config.Network, a netip.Addr) error {
	p, _ := blockOf(n.Subnets, a)
	block := ipam.Block{Network: n.Name, Prefix: p}
	if slices.Contains(view.Settled, p) {
		return nil
	}
	if why := l.waiting(block); why != "" {
		return &waitError{why}
	}
	if holder, barred := in.Barred[block]; barred && holder != in.Self.ID && !slices.Contains(view.Blocks, p) {
		whose := "another node"
		if !holder.IsZero() {
			whose = "node " + l.shown(holder)
		}
		return api.NewError(api.CodeRefused,
			fmt.Sprintf("address %s lies in block %s, which %s has or claims", a, p, whose), "leave out --ip, or attach it on that node")
	}
	subnet, _ := subnetOf(n.Subnets, a)
	have := 0
	for _, b := range view.Blocks {
		if isBlock(subnet, b) {
			have++
		}
	}
	if have >= record.MaxBlocks/len(n.Subnets) && !slices.Contains(view.Blocks, p) {
		return api.NewError(api.CodeRefused,
			fmt.Sprintf("address %s lies in block %s, and this node has %d blocks of subnet %s, which is the most", a, p, have, subnet),
			"give an address of a block that this node has (secure-overlay network show "+n.Name+"), or attach it on another node")
	}
	return &waitError{fmt.Sprintf("this node has yet to claim block %s of %s", p, subnet)}
}

// usedOn returns who has which address of a network, by what every member
// says, whether it agrees about the network or not.
func usedOn(in Input, n config.Network) map[netip.Addr]string {
	used := map[netip.Addr]string{}
	for _, m := range in.Members {
		for _, a := range m.Record.Attached {
			for _, addr := range a.Addrs {
				if a.VNI == n.VNI {
					used[addr] = "an endpoint of node " + m.title()
				}
			}
		}
	}
	for _, at := range in.Attachments {
		for _, p := range at.Addrs {
			if at.Network == n.Name {
				used[p.Addr()] = "endpoint " + at.ID + " of this node"
			}
		}
	}
	return used
}

// checkWanted reports why an explicit address cannot be given.
func checkWanted(in Input, n config.Network, a netip.Addr, used map[netip.Addr]string) (netip.Prefix, error) {
	subnet, ok := subnetOf(n.Subnets, a)
	if !ok {
		return subnet, api.NewError(api.CodeInvalid, fmt.Sprintf("address %s is not in a subnet of network %s (%s)", a, n.Name, netdef.Text(n.Subnets)), "")
	}
	if n.Withheld(subnet, a) {
		return subnet, api.NewError(api.CodeRefused, fmt.Sprintf("address %s of subnet %s is reserved (network, gateway, broadcast, or by --reserve)", a, subnet),
			"leave out --ip, or give another address")
	}
	if who, ok := used[a]; ok {
		return subnet, api.NewError(api.CodeRefused, fmt.Sprintf("address %s belongs to %s", a, who), "secure-overlay endpoint ls")
	}
	for _, m := range in.Members {
		joined, conflicts := compare(n, in.Config.Data.VXLANPort, m.Record)
		if !joined || len(conflicts) > 0 {
			continue
		}
		for _, their := range m.Record.Networks {
			for _, block := range their.Blocks {
				if their.Name == n.Name && isBlock(subnet, block) && block.Contains(a) {
					return subnet, api.NewError(api.CodeRefused,
						fmt.Sprintf("address %s lies in block %s of node %s, which hands out its addresses", a, block, m.title()),
						"leave out --ip, or attach it on that node")
				}
			}
		}
	}
	return subnet, nil
}

// ifname checks the wanted interface name, or finds the first free ethN.
func (l *loop) ifname(p *pendingAttach) (string, error) {
	links, err := p.ns.Links()
	if err != nil {
		return "", err
	}
	taken := map[string]bool{}
	for _, name := range links {
		taken[name] = true
	}
	for _, at := range l.attachments {
		if at.NsID == p.ns.ID() {
			taken[at.Ifname] = true
		}
	}
	if want := p.req.Ifname; want != "" {
		if taken[want] {
			return "", typed(api.CodeRefused, vxlan.ErrNameTaken, fmt.Sprintf("the namespace has a link %s already", want), "give another name with --ifname")
		}
		return want, nil
	}
	if p.req.Host {
		name := "so-" + p.req.Network
		name = name[:min(len(name), api.MaxIfname)]
		if taken[name] {
			return "", typed(api.CodeRefused, vxlan.ErrNameTaken, fmt.Sprintf("the host has a link %s already", name), "give another name with --ifname")
		}
		return name, nil
	}
	for i := 0; ; i++ {
		if name := fmt.Sprintf("eth%d", i); !taken[name] {
			return name, nil
		}
	}
}

func addrText(addrs []netip.Prefix) string {
	text := make([]string, len(addrs))
	for i, a := range addrs {
		text[i] = a.String()
	}
	return strings.Join(text, ", ")
}
