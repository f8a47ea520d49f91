package agent

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/netdef"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// claimBlocks keeps the blocks this node has, gives up those that an older
// member claims too, and claims more where addresses run short. Claims do not
// depend on whether the network can be connected right now: the addresses of
// a node must not change because a driver is missing for a while.
func (b *build) claimBlocks() {
	for _, n := range b.nets {
		taken := b.takenBlocks(n)
		used := b.usedAddresses(n)
		mine := map[netip.Prefix]bool{}
		for _, block := range b.previousBlocks(n) {
			if o, ok := taken[block]; ok && o.before(b.in.Self.rank()) {
				b.lostBlock(n, block, o)
				continue
			}
			mine[block] = true
		}
		for _, subnet := range n.Subnets {
			b.claimMore(n, subnet, mine, taken, used)
			n.noteFilling(subnet, mine, taken)
		}
		for block := range mine {
			n.blocks = append(n.blocks, block)
		}
		slices.SortFunc(n.blocks, netdef.ComparePrefix)
	}
}

// claimMore claims blocks of one subnet until enough addresses are free.
func (b *build) claimMore(n *network, subnet netip.Prefix, mine map[netip.Prefix]bool, taken map[netip.Prefix]owner, used map[netip.Addr]ids.NodeID) {
	free, have := 0, 0
	excluded := make(map[netip.Prefix]bool, len(taken)+len(mine))
	for block := range taken {
		excluded[block] = true
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

// previousBlocks are the blocks that this node claimed before and that are
// still blocks of the network's subnets.
func (b *build) previousBlocks(n *network) []netip.Prefix {
	for _, prev := range b.in.Self.Previous.Networks {
		if prev.Name != n.Name {
			continue
		}
		return slices.DeleteFunc(slices.Clone(prev.Blocks), func(block netip.Prefix) bool {
			return !slices.ContainsFunc(n.Subnets, func(s netip.Prefix) bool { return isBlock(s, block) })
		})
	}
	return nil
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
				if !slices.ContainsFunc(n.Subnets, func(s netip.Prefix) bool { return isBlock(s, block) }) {
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

func (b *build) lostBlock(n *network, block netip.Prefix, to owner) {
	affected := 0
	for _, a := range b.in.Attachments {
		if a.Network == n.Name && slices.ContainsFunc(a.Addrs, func(p netip.Prefix) bool { return block.Contains(p.Addr()) }) {
			affected++
		}
	}
	b.problem("block-lost", n.Name,
		fmt.Sprintf("network %s: block %s belongs to node %s, which is the older member; this node takes another, and %d endpoints here have addresses in it",
			n.Name, block, b.title(to.node), affected),
		"attach the affected endpoints again if their addresses are disputed")
}
