package agent

import (
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/netdef"
)

// Each subnet is cut into blocks, and a node hands out addresses only from
// blocks that it claims in its signed record. So two nodes do not choose the
// same address although neither asks the other. Everything here is a pure
// function of its arguments.
const (
	minBlocks     = 16      // a subnet has at least this many, if it has as many addresses
	blockHostBits = 6       // a block has at most 64 addresses
	maxBlockIndex = 1 << 16 // of a large IPv6 subnet only the first blocks are used: short addresses
)

// blockBits is the prefix length of the blocks of a subnet.
func blockBits(subnet netip.Prefix) int {
	const log2MinBlocks = 4
	all := subnet.Addr().BitLen()
	return min(all, max(subnet.Bits()+log2MinBlocks, all-blockHostBits))
}

// blockCount is how many blocks of a subnet lie in a range of it and are used; a
// power of two.
func blockCount(subnet, rng netip.Prefix) uint64 {
	bits := blockBits(subnet) - rng.Bits()
	switch {
	case bits >= 16:
		return maxBlockIndex
	case bits <= 0:
		return 1 // the one that holds the range
	}
	return 1 << bits
}

// blockAt returns block i of those that lie in a range of a subnet, i < blockCount.
func blockAt(subnet, rng netip.Prefix, i uint64) netip.Prefix {
	bits := blockBits(subnet)
	return netip.PrefixFrom(addrAt(rng, i<<(subnet.Addr().BitLen()-bits)), bits).Masked()
}

// addrAt returns the address at an offset from the start of a subnet. The
// offsets in use are far below 2^32.
func addrAt(subnet netip.Prefix, offset uint64) netip.Addr {
	if subnet.Addr().Is4() {
		raw := subnet.Masked().Addr().As4()
		binary.BigEndian.PutUint32(raw[:], binary.BigEndian.Uint32(raw[:])+uint32(offset)) //nolint:gosec // below 2^32, see above
		return netip.AddrFrom4(raw)
	}
	raw := subnet.Masked().Addr().As16()
	low := binary.BigEndian.Uint64(raw[8:])
	binary.BigEndian.PutUint64(raw[8:], low+offset)
	if low+offset < low {
		binary.BigEndian.PutUint64(raw[:8], binary.BigEndian.Uint64(raw[:8])+1)
	}
	return netip.AddrFrom16(raw)
}

// isBlock reports whether p is a block of subnet, exactly: a claim for more
// than one block, or across blocks, is none.
func isBlock(subnet, p netip.Prefix) bool {
	return p.Addr().Is4() == subnet.Addr().Is4() && p.Bits() == blockBits(subnet) &&
		p == p.Masked() && subnet.Contains(p.Addr())
}

// addressesOf returns the addresses of a block that an endpoint can be given, ascending.
func addressesOf(o netdef.Options, subnet, block netip.Prefix) []netip.Addr {
	n := 1 << (block.Addr().BitLen() - block.Bits())
	out := make([]netip.Addr, 0, n)
	rng := o.Range(subnet)
	for a := block.Addr(); len(out) < n && block.Contains(a); a = a.Next() {
		if rng.Contains(a) && !o.Withheld(subnet, a) {
			out = append(out, a)
		}
	}
	return out
}

// pickBlock returns the block of subnet that a node should claim next: the
// first, in an order that differs from node to node, that has a usable
// address and is not taken. Nodes that join at the same time thus rarely
// choose the same one.
func pickBlock(node ids.NodeID, o netdef.Options, subnet netip.Prefix, taken map[netip.Prefix]bool) (netip.Prefix, bool) {
	rng := o.Range(subnet)
	raw, _ := rng.MarshalBinary()
	sum := sha256.Sum256(slices.Concat([]byte("so-block-v1"), node[:], raw))
	n := blockCount(subnet, rng)
	// An odd step visits each of a power of two of blocks exactly once.
	at, step := binary.BigEndian.Uint64(sum[:8]), binary.BigEndian.Uint64(sum[8:16])|1
	for range n {
		b := blockAt(subnet, rng, at%n)
		if !taken[b] && len(addressesOf(o, subnet, b)) > 0 {
			return b, true
		}
		at += step
	}
	return netip.Prefix{}, false
}

// pickAddr returns the lowest usable address of the blocks that lie in subnet
// and that is not used.
func pickAddr(o netdef.Options, subnet netip.Prefix, blocks []netip.Prefix, used func(netip.Addr) bool) (netip.Addr, bool) {
	for _, b := range blocks {
		if !isBlock(subnet, b) {
			continue
		}
		for _, a := range addressesOf(o, subnet, b) {
			if !used(a) {
				return a, true
			}
		}
	}
	return netip.Addr{}, false
}

// lowWater is the number of free addresses below which a node claims one more
// block of the subnet, so that the next attach need not wait for a claim.
func lowWater(subnet netip.Prefix) int {
	size := 1 << (subnet.Addr().BitLen() - blockBits(subnet))
	return max(1, size/8)
}

// owner is a node that claims a block, an address or a MAC.
type owner struct {
	node   ids.NodeID
	serial uint64
}

// before reports whether o wins against p: the certificate with the lower
// serial is the older member. Serials are unique; the ID is there for
// certificates of two issuers.
func (o owner) before(p owner) bool {
	if o.serial != p.serial {
		return o.serial < p.serial
	}
	return o.node.Compare(p.node) < 0
}
