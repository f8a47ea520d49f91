package agent

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/netdef"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// claimBlocks keeps the blocks this node has, gives up those that are not settled and
// that an older member claims too, and claims more where addresses run short. Claims do
// not depend on whether the network can be connected right now: the addresses of
// a node must not change because a driver is missing for a while.
func (b *build) claimBlocks() {
	for _, n := range b.nets {
		taken := b.takenBlocks(n)
		used := b.usedAddresses(n)
		mine := b.keptBlocks(n, taken)
		barred := map[netip.Prefix]bool{}
		for block := range b.in.Barred {
			if block.Network == n.Name {
				barred[block.Prefix] = true
			}
		}
		for _, w := range b.in.Wanted {
			_, is := taken[w.Prefix]
			if w.Network == n.Name && !is && !barred[w.Prefix] && isBlockOf(n.Subnets, w.Prefix) && n.mayClaim(w.Prefix, mine) {
				mine[w.Prefix] = true
			}
		}
		for _, subnet := range n.Subnets {
			b.claimMore(n, subnet, mine, taken, barred, used)
			n.noteFilling(subnet, mine, taken)
		}
		for block := range mine {
			n.blocks = append(n.blocks, block)
		}
		slices.SortFunc(n.blocks, netdef.ComparePrefix)
	}
}

// keptBlocks are the claims that this node goes on with.
func (b *build) keptBlocks(n *network, taken map[netip.Prefix]owner) map[netip.Prefix]bool {
	mine := map[netip.Prefix]bool{}
	for _, own := range b.in.Blocks {
		if own.Network != n.Name || !isBlockOf(n.Subnets, own.Prefix) {
			continue
		}
		o, disputed := taken[own.Prefix]
		switch {
		case own.Settled && disputed:
			// A claim that came when this node could not be heard, and that ends
			// when its node hears of this one; or what PROTOCOL.md, 13.5 says
			// cannot be excluded. This node goes on: whom the block was granted
			// to does not depend on what others write into their records.
			b.problem("block-disputed", n.Name,
				fmt.Sprintf("network %s: node %s claims block %s, which is this node's", n.Name, b.title(o.node), own.Prefix),
				"if it stays: look whether members were added on both sides of a cut; addresses that both have given out are named apart")
		case disputed && o.before(b.in.Self.rank()):
			continue
		}
		mine[own.Prefix] = true
		if own.Settled {
			n.settled = append(n.settled, own.Prefix)
		}
	}
	return mine
}

// mayClaim reports whether this node's record has room for one more block of the
// subnet of this one.
func (n *network) mayClaim(p netip.Prefix, mine map[netip.Prefix]bool) bool {
	subnet, _ := subnetOf(n.Subnets, p.Addr())
	have := 0
	for block := range mine {
		if isBlock(subnet, block) {
			have++
		}
	}
	return have < record.MaxBlocks/len(n.Subnets)
}

// isBlockOf reports whether p is exactly a block of one of the subnets.
func isBlockOf(subnets []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return isBlock(s, p) })
}

// claimMore claims blocks of one subnet until enough addresses are free.
func (b *build) claimMore(n *network, subnet netip.Prefix, mine map[netip.Prefix]bool, taken map[netip.Prefix]owner, barred map[netip.Prefix]bool, used map[netip.Addr]ids.NodeID) {
	free, have := 0, 0
	excluded := make(map[netip.Prefix]bool, len(taken)+len(barred)+len(mine))
	for block := range taken {
		excluded[block] = true
	}
	for block := range barred {
		excluded[block] = excluded[block] || isBlock(subnet, block)
	}
	count := func(block netip.Prefix) {
		have++
		excluded[block] = true
		for _, a := range addressesOf(n.Options, subnet, block) {
			if _, ok := used[a]; !ok {
				free++
			}
		}
	}
	for block := range mine {
		if isBlock(subnet, block) {
			count(block)
		}
	}
	limit := record.MaxBlocks / len(n.Subnets)
	for free < lowWater(subnet) && have < limit {
		block, ok := pickBlock(b.in.Self.ID, n.Options, subnet, excluded)
		if !ok {
			break
		}
		mine[block] = true
		count(block)
	}
	if free == 0 {
		n.full = append(n.full, subnet)
		b.problem("subnet-full", n.Name,
			fmt.Sprintf("network %s: this node has no free address in subnet %s and can claim no further block (%d blocks are its own, %d belong to other nodes, a node may have %d)",
				n.Name, subnet, have, len(excluded)-have, limit),
			"detach endpoints that are not needed, or give the network a larger subnet on all nodes")
	}
}

// fillingAt is the part of a subnet, in percent, from which on there is a warning.
const fillingAt = 80

// noteFilling looks how much of a subnet is claimed. What counts are blocks: a node
// that finds none can hand out no address, however many others do not use.
func (n *network) noteFilling(subnet netip.Prefix, mine map[netip.Prefix]bool, taken map[netip.Prefix]owner) {
	rng := n.Range(subnet)
	f := Filling{Subnet: subnet, Blocks: int(blockCount(subnet, rng))} //nolint:gosec // at most maxBlockIndex
	for block := range mine {
		if _, too := taken[block]; !too && isBlock(subnet, block) && block.Overlaps(rng) {
			f.Taken++
		}
	}
	for block := range taken {
		if isBlock(subnet, block) && block.Overlaps(rng) {
			f.Taken++
		}
	}
	if f.Taken*100 >= f.Blocks*fillingAt {
		n.fill = append(n.fill, f)
	}
}

// takenBlocks returns the best claim of another node to each block. A prefix
// that is not exactly a block is no claim: one record cannot take a subnet
// with one line.
func (b *build) takenBlocks(n *network) map[netip.Prefix]owner {
	taken := map[netip.Prefix]owner{}
	for _, p := range n.alike {
		for _, their := range p.Record.Networks {
			if their.Name != n.Name {
				continue
			}
			for _, block := range their.Blocks {
				if !isBlockOf(n.Subnets, block) {
					continue
				}
				if o, ok := taken[block]; !ok || p.rank().before(o) {
					taken[block] = p.rank()
				}
			}
		}
	}
	return taken
}

// usedAddresses returns every address of the network that any node, this one
// included, says it has an endpoint for, disputed or not.
func (b *build) usedAddresses(n *network) map[netip.Addr]ids.NodeID {
	used := map[netip.Addr]ids.NodeID{}
	for _, p := range n.alike {
		for _, a := range p.Record.Attached {
			if a.VNI != n.VNI {
				continue
			}
			for _, addr := range a.Addrs {
				used[addr] = p.ID
			}
		}
	}
	for _, a := range b.in.Attachments {
		if a.Network == n.Name {
			for _, p := range a.Addrs {
				used[p.Addr()] = b.in.Self.ID
			}
		}
	}
	return used
}
