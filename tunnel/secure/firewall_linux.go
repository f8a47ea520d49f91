package secure

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nft"
)

const (
	tableName  = "secure_overlay"
	membersSet = "members"
	// elementsPerMessage keeps a set message below the 64 KiB that one
	// netlink attribute can hold: an element takes 36 bytes.
	elementsPerMessage = 1000
	// sendBuffer lets one transaction carry about 100,000 elements.
	sendBuffer = 8 << 20
)

// table is the nftables table `inet secure_overlay` of one namespace.
type table struct{ fd int }

// tableState is what read found.
type tableState struct {
	intact            bool
	port              uint16 // 0: no VXLAN is accepted
	members           []Member
	accepted, dropped uint64
}

func (t *table) conn() (*nftables.Conn, error) {
	return nftables.New(nftables.WithNetNSFd(t.fd), nftables.AsLasting(),
		nftables.WithSockOptions(func(c *netlink.Conn) error {
			return errors.Join(c.SetWriteBuffer(sendBuffer), c.SetReadBuffer(sendBuffer))
		}))
}

// handles of the objects, without which requests cannot name them.
func nftTable() *nftables.Table {
	return &nftables.Table{Name: tableName, Family: nftables.TableFamilyINet}
}

// nftSet is the set of (inner source, VNI) pairs that may send to us.
func nftSet() *nftables.Set {
	return &nftables.Set{
		Table: nftTable(),
		Name:  membersSet,
		ID:    1, // given here because the library numbers sets in a global
		// IPv6 address, then 24 bits of VNI padded to a 32-bit register. It is
		// called a mark because nft(8) aborts on listing a concatenation with
		// a plain integer; it shows VNI 42 as 0x002a0000.
		KeyType:       nftables.MustConcatSetType(nftables.TypeIP6Addr, nftables.TypeMark),
		KeyByteOrder:  binaryutil.BigEndian,
		Concatenation: true,
	}
}

// chains is the whole ruleset for a VXLAN port; 0 accepts no VXLAN. Every
// chain drops what no rule accepts.
func chains(port uint16) []nft.Chain {
	input := [][]expr.Any{
		nft.Join(nft.Ifname(expr.MetaKeyIIFNAME, "lo\x00"), nft.Accept()),
		// Second layer to the links check: nothing enters but through links
		// that are named as tunnel devices.
		nft.Join(nft.NotIfname(expr.MetaKeyIIFNAME, namePrefix), nft.Drop()),
	}
	if port != 0 {
		input = append(input, nft.Join(vxlanFromMember(port), nft.Counted(), nft.Accept()))
	}
	// Echo, for probes through a device, and no ICMPv6 errors: every peer is one
	// hop away and the MTU is derived, so nobody can have a true one to tell.
	// The kernel would believe a peer's "packet too big" about another peer,
	// and fragment, and fragments are dropped: one member could cut off two.
	input = append(input, nft.Join(nft.Types(unix.IPPROTO_ICMPV6, 128, 129), nft.Accept()), nft.Drop())
	chain := func(name string, hook *nftables.ChainHook, rules [][]expr.Any) nft.Chain {
		return nft.Chain{
			Name: name, Type: nftables.ChainTypeFilter, Hook: hook, Priority: nftables.ChainPriorityFilter, Policy: nftables.ChainPolicyDrop, Rules: rules,
		}
	}
	return []nft.Chain{
		chain("input", nftables.ChainHookInput, input),
		chain("forward", nftables.ChainHookForward, [][]expr.Any{nft.Drop()}),
		chain("output", nftables.ChainHookOutput, [][]expr.Any{
			nft.Join(nft.Ifname(expr.MetaKeyOIFNAME, "lo\x00"), nft.Accept()),
			nft.Join(nft.Ifname(expr.MetaKeyOIFNAME, namePrefix), nft.Accept()),
			nft.Drop(),
		}),
	}
}

// vxlanFromMember matches `udp dport port ip6 saddr . @th,96,24 @members`: the
// VNI is 12 bytes behind the start of the UDP header (8 of UDP, then flags and
// 24 reserved bits; RFC 7348 section 5). The kernel finds no transport header
// in any but the first fragment, so a fragmented packet never gets whole.
func vxlanFromMember(port uint16) []expr.Any {
	return nft.Join(
		nft.Is(expr.MetaKeyNFPROTO, unix.NFPROTO_IPV6),
		nft.Is(expr.MetaKeyL4PROTO, unix.IPPROTO_UDP),
		nft.Dport(port),
		[]expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 8, Len: 16},
			&expr.Payload{DestRegister: 2, Base: expr.PayloadBaseTransportHeader, Offset: 12, Len: 3},
			&expr.Lookup{SourceRegister: 1, SetName: membersSet, SetID: 1},
		})
}

// element is a member as the set holds it.
func element(m Member) nftables.SetElement {
	key := m.Inner.As16()
	return nftables.SetElement{Key: append(key[:], byte(m.VNI>>16), byte(m.VNI>>8), byte(m.VNI), 0)}
}

func memberOf(e nftables.SetElement) (Member, bool) {
	if len(e.Key) != 20 {
		return Member{}, false
	}
	vni := ids.VNI(binary.BigEndian.Uint32(e.Key[16:]) >> 8)
	return Member{Inner: netip.AddrFrom16([16]byte(e.Key[:16])), VNI: vni}, e.Key[19] == 0
}

func compareMembers(a, b Member) int {
	return cmp.Or(a.Inner.Compare(b.Inner), cmp.Compare(a.VNI, b.VNI))
}

// write makes the table what it should be by one transaction, which the
// kernel applies whole or not at all: there is no moment without a rule.
func (t *table) write(have tableState, port uint16, members []Member) error {
	want := slices.Compact(slices.SortedFunc(slices.Values(members), compareMembers))
	if have.intact && have.port == port && slices.Equal(have.members, want) {
		return nil
	}
	c, err := t.conn()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	defer func() { _ = c.CloseLasting() }()
	set := nftSet()
	if have.intact && have.port == port {
		gone := slices.DeleteFunc(slices.Clone(have.members), func(m Member) bool { return contains(want, m) })
		want = slices.DeleteFunc(want, func(m Member) bool { return contains(have.members, m) })
		err = elements(gone, func(e []nftables.SetElement) error { return c.SetDeleteElements(set, e) })
	} else {
		err = t.rebuild(c, set, port)
	}
	err = errors.Join(err, elements(want, func(e []nftables.SetElement) error { return c.SetAddElements(set, e) }))
	if err != nil {
		return fmt.Errorf("build nftables transaction: %w", err)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("write nftables table %s: %w", tableName, err)
	}
	return nil
}

func contains(sorted []Member, m Member) bool {
	_, ok := slices.BinarySearchFunc(sorted, m, compareMembers)
	return ok
}

func elements(members []Member, send func([]nftables.SetElement) error) error {
	for part := range slices.Chunk(members, elementsPerMessage) {
		out := make([]nftables.SetElement, len(part))
		for i, m := range part {
			out[i] = element(m)
		}
		if err := send(out); err != nil {
			return err
		}
	}
	return nil
}

// rebuild queues the whole table anew, whatever is there.
func (t *table) rebuild(c *nftables.Conn, set *nftables.Set, port uint16) error {
	tab := c.AddTable(nftTable()) // so that there is one to delete
	c.DelTable(tab)
	c.AddTable(tab)
	if err := c.AddSet(set, nil); err != nil {
		return err
	}
	nft.Add(c, tab, chains(port))
	return nil
}
