package gateway

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nft"
	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// table is the nftables table `inet secure_overlay_gateway` of one namespace.
type table struct{ fd int }

func tableOf(ns *nl.Namespace) table { return table{fd: ns.FD()} }

func nftTable() *nftables.Table {
	return &nftables.Table{Name: "secure_overlay_gateway", Family: nftables.TableFamilyINet}
}

func (t table) with(fn func(*nftables.Conn) error) error {
	c, err := nftables.New(nftables.WithNetNSFd(t.fd), nftables.AsLasting())
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	return errors.Join(fn(c), c.CloseLasting())
}

// there reports whether the table exists.
func (t table) there() (there bool, err error) {
	err = t.with(func(c *nftables.Conn) error {
		there, err = nft.Has(c, nftTable())
		return err
	})
	return there, err
}

// set makes the table what it should be by one transaction. Connections that are
// under way stay: they are the kernel's, not the table's.
func (t table) set(want []nft.Chain) error {
	return t.with(func(c *nftables.Conn) error {
		have, err := nft.Read(c, nftTable())
		if err != nil && !errors.Is(err, unix.ENOENT) { // flushed while we looked
			return fmt.Errorf("read nftables table %s: %w", nftTable().Name, err)
		}
		there, err := nft.Has(c, nftTable())
		if err != nil {
			return fmt.Errorf("read nftables tables: %w", err)
		}
		if there && nft.Matches(have, want) {
			return nil
		}
		tab := c.AddTable(nftTable()) // so that there is one to delete
		c.DelTable(tab)
		c.AddTable(tab)
		nft.Add(c, tab, want)
		if err := c.Flush(); err != nil {
			return fmt.Errorf("write nftables table %s: %w", tab.Name, err)
		}
		return nil
	})
}

// drop deletes the table, if there is one.
func (t table) drop() error {
	return t.with(func(c *nftables.Conn) error {
		if there, err := nft.Has(c, nftTable()); err != nil || !there {
			return err
		}
		c.DelTable(nftTable())
		if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("delete nftables table %s: %w", nftTable().Name, err)
		}
		return nil
	})
}

func filterChain(name string, hook *nftables.ChainHook, policy nftables.ChainPolicy, rules ...[]expr.Any) nft.Chain {
	return nft.Chain{Name: name, Type: nftables.ChainTypeFilter, Hook: hook, Priority: nftables.ChainPriorityFilter, Policy: policy, Rules: rules}
}

func natChain(rules ...[]expr.Any) nft.Chain {
	return nft.Chain{
		Name: "postrouting", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
		Policy: nftables.ChainPolicyAccept, Rules: rules,
	}
}

func in(link string) []expr.Any  { return nft.Ifname(expr.MetaKeyIIFNAME, link) }
func out(link string) []expr.Any { return nft.Ifname(expr.MetaKeyOIFNAME, link) }

// exactly is a link's name that is no prefix of another's.
func exactly(link string) string { return link + "\x00" }

// insideChains are those of the gateway namespace.
func insideChains(spec Spec) []nft.Chain {
	const dns = 53
	input := [][]expr.Any{
		nft.Join(in(exactly("lo")), nft.Accept()),
		nft.Join(in(linkPrefix), nft.Is(expr.MetaKeyL4PROTO, unix.IPPROTO_UDP), nft.Dport(dns), nft.Accept()),
		nft.Join(in(linkPrefix), nft.Is(expr.MetaKeyL4PROTO, unix.IPPROTO_TCP), nft.Dport(dns), nft.Accept()),
		nft.Join(in(linkPrefix), nft.Types(unix.IPPROTO_ICMP, 8, 8), nft.Accept()),
		nft.Join(in(linkPrefix), nft.Types(unix.IPPROTO_ICMPV6, 128, 128), nft.Accept()),
		nft.Join(nft.Types(unix.IPPROTO_ICMPV6, 135, 136), nft.Accept()), // neighbours
		nft.Drop(),
	}
	if len(spec.Out) == 0 {
		// Of this every kernel is capable that has nftables at all.
		return []nft.Chain{
			filterChain("input", nftables.ChainHookInput, nftables.ChainPolicyDrop, input...),
			filterChain("forward", nftables.ChainHookForward, nftables.ChainPolicyDrop, nft.Drop()),
		}
	}
	forward := [][]expr.Any{
		clampMSS(),
		nft.Join(in(exactly(inside)), out(linkPrefix), answers(), nft.Accept()),
	}
	for _, n := range spec.Out {
		for _, s := range n.Subnets {
			forward = append(forward, nft.Join(in(exactly(n.Link)), out(exactly(inside)), from(s), nft.Accept()))
		}
	}
	forward = append(forward, nft.Drop())
	return []nft.Chain{
		filterChain("input", nftables.ChainHookInput, nftables.ChainPolicyDrop, input...),
		filterChain("forward", nftables.ChainHookForward, nftables.ChainPolicyDrop, forward...),
		natChain(nft.Join(out(exactly(inside)), masquerade())),
	}
}

// hostChains are those of the host's namespace. They concern the uplink only.
func hostChains() []nft.Chain {
	up := exactly(Uplink)
	return []nft.Chain{
		// Endpoints do not reach the host itself: what it offers on its addresses
		// was not meant for them.
		filterChain("input", nftables.ChainHookInput, nftables.ChainPolicyAccept,
			nft.Join(in(up), nft.Types(unix.IPPROTO_ICMPV6, 135, 136), nft.Accept()),
			nft.Join(in(up), answers(), nft.Accept()),
			nft.Join(in(up), nft.Drop()),
		),
		// Nobody reaches endpoints by it unasked. What is accepted here can still be
		// dropped by a table of somebody else.
		filterChain("forward", nftables.ChainHookForward, nftables.ChainPolicyAccept,
			nft.Join(out(up), answers(), nft.Accept()),
			nft.Join(out(up), nft.Drop()),
		),
		natChain(
			nft.Join(from(innerEnd(false)), masquerade()),
			nft.Join(from(innerEnd(true)), masquerade()),
		),
	}
}

// answers matches packets of connections that have begun from the other side, and
// errors about them.
func answers() []expr.Any {
	mask := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	none := binaryutil.NativeEndian.PutUint32(0)
	return []expr.Any{
		&expr.Ct{Register: 1, Key: expr.CtKeySTATE},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask, Xor: none},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: none},
	}
}

// from matches source addresses of a prefix.
func from(p netip.Prefix) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(12)
	if p.Addr().Is6() {
		family, offset = unix.NFPROTO_IPV6, 8
	}
	size := uint32(p.Addr().BitLen() / 8) //nolint:gosec // 4 or 16
	return nft.Join(nft.Is(expr.MetaKeyNFPROTO, family), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: ipNet(p).Mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	})
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{}} }

// clampMSS makes the segments of a TCP connection fit the route that its first packets
// take, for paths on which errors about large packets do not come back (RFC 4459
// section 3.2). The kernel only ever makes the value smaller.
func clampMSS() []expr.Any {
	const syn, optMSS = 0x02, 2
	return nft.Join(nft.Is(expr.MetaKeyL4PROTO, unix.IPPROTO_TCP), []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{syn}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0}},
		&expr.Rt{Register: 1, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: 1, Type: optMSS, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	})
}
