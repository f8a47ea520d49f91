package xfrm

import (
	"encoding/binary"
	"math/bits"
	"net/netip"

	rtnl "github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// messageMax is more than any request of this package is long. A buffer of
// this capacity never grows, so no copy of a key stays behind in an old one.
const messageMax = 1024

// encodeState makes the body of XFRM_MSG_NEWSA. The result holds the key: the
// caller clears it.
func encodeState(s State, material []byte) []byte {
	msg := rtnl.XfrmUsersaInfo{
		Sel: selector(s.From, s.To), Id: rtnl.XfrmId{Daddr: address(s.Dst), Spi: spi(s.SPI), Proto: unix.IPPROTO_ESP},
		Saddr: address(s.Src), Lft: forever(), Reqid: s.ReqID, Family: family(s.Dst), Mode: modeTunnel,
		// Without XFRM_STATE_NOPMTUDISC an IPv4 outer header would carry
		// "don't fragment", and a router with a smaller MTU on the way would
		// swallow packets: its complaints need not reach us, and are
		// anybody's to forge. WireGuard's packets may be fragmented, too.
		Flags: rtnl.XFRM_STATE_ESN | rtnl.XFRM_STATE_NOPMTUDISC,
	}
	b := append(make([]byte, 0, messageMax), msg.Serialize()...)
	algo := binary.NativeEndian.AppendUint32(append(make([]byte, 0, 128), fixed(aead, 64)...), uint32(len(material)*8))
	algo = append(binary.NativeEndian.AppendUint32(algo, tagBits), material...)
	b = attr(b, rtnl.XFRMA_ALG_AEAD, algo)
	clear(algo)
	b = attr(b, rtnl.XFRMA_REPLAY_ESN_VAL, replay())
	// The outer header does not show what class of traffic is inside.
	b = attr32(b, rtnl.XFRMA_SA_EXTRA_FLAGS, rtnl.XFRM_SA_XFLAG_DONT_ENCAP_DSCP)
	if s.Encap != (Encap{}) {
		e := rtnl.XfrmEncapTmpl{
			EncapType: unix.UDP_ENCAP_ESPINUDP, EncapSport: bigEndian(s.Encap.Src), EncapDport: bigEndian(s.Encap.Dst),
		}
		b = attr(b, rtnl.XFRMA_ENCAP, e.Serialize())
	}
	return attr32(b, rtnl.XFRMA_IF_ID, s.IfID)
}

// replay makes a struct xfrm_replay_state_esn: all counters begin at zero. A
// sending association needs a window, too, or the kernel refuses it.
func replay() []byte {
	const words = Window / 32
	b := make([]byte, rtnl.SizeofXfrmReplayStateEsn+words*4)
	binary.NativeEndian.PutUint32(b, words)
	binary.NativeEndian.PutUint32(b[20:], Window)
	return b
}

// encodeName makes a struct xfrm_usersa_id, the body of XFRM_MSG_DELSA.
func encodeName(n Name) []byte {
	msg := rtnl.XfrmUsersaId{Daddr: address(n.Dst), Spi: spi(n.SPI), Family: family(n.Dst), Proto: unix.IPPROTO_ESP}
	return append([]byte(nil), msg.Serialize()...)
}

// encodeUsage makes a struct xfrm_aevent_id, the body of XFRM_MSG_GETAE.
func encodeUsage(n Name) []byte { return append(encodeName(n), make([]byte, aeventSize-24)...) }

// encodePolicy makes the body of XFRM_MSG_UPDPOLICY.
func encodePolicy(p Policy) []byte {
	msg := rtnl.XfrmUserpolicyInfo{
		Sel: selector(p.From, p.To), Lft: forever(), Priority: priority, Dir: uint8(p.Dir), Action: policyAllow,
	}
	all := ^uint32(0) // any algorithm: there is but one in use
	tmpl := rtnl.XfrmUserTmpl{
		XfrmId: rtnl.XfrmId{Daddr: address(p.Dst), Spi: spi(p.SPI), Proto: unix.IPPROTO_ESP},
		Family: family(p.Dst), Saddr: address(p.Src), Reqid: p.ReqID, Mode: modeTunnel, Aalgos: all, Ealgos: all, Calgos: all,
	}
	b := append(make([]byte, 0, messageMax), msg.Serialize()...)
	b = attr(b, rtnl.XFRMA_TMPL, tmpl.Serialize())
	return attr32(b, rtnl.XFRMA_IF_ID, p.IfID)
}

// encodePolicyName makes the body of XFRM_MSG_DELPOLICY.
func encodePolicyName(p Policy) []byte {
	msg := rtnl.XfrmUserpolicyId{Sel: selector(p.From, p.To), Dir: uint8(p.Dir)}
	return attr32(append(make([]byte, 0, messageMax), msg.Serialize()...), rtnl.XFRMA_IF_ID, p.IfID)
}

// Numbers of linux/xfrm.h that the library has no name for.
const (
	modeTunnel  = 1  // XFRM_MODE_TUNNEL
	policyAllow = 0  // XFRM_POLICY_ALLOW
	aeventSize  = 48 // sizeof(struct xfrm_aevent_id)
	// priority is the same for all: selectors of one interface never overlap.
	priority = 1000
)

// selector matches packets between two inner addresses.
func selector(from, to netip.Addr) rtnl.XfrmSelector {
	return rtnl.XfrmSelector{
		Daddr: address(to), Saddr: address(from), Family: family(to),
		PrefixlenD: uint8(to.BitLen()), PrefixlenS: uint8(from.BitLen()),
	}
}

// forever is a lifetime without limits. A hard limit would turn a rotation
// that is late into an outage; see DESIGN.md of tunnel/ipsec.
func forever() rtnl.XfrmLifetimeCfg {
	return rtnl.XfrmLifetimeCfg{
		SoftByteLimit: rtnl.XFRM_INF, HardByteLimit: rtnl.XFRM_INF,
		SoftPacketLimit: rtnl.XFRM_INF, HardPacketLimit: rtnl.XFRM_INF,
	}
}

func address(a netip.Addr) (out rtnl.XfrmAddress) {
	copy(out[:], a.AsSlice())
	return out
}

func family(a netip.Addr) uint16 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// spi gives an index the byte order of the wire in a field that is written as
// it lies in memory.
func spi(s ids.SPI) uint32 {
	return binary.NativeEndian.Uint32(binary.BigEndian.AppendUint32(nil, uint32(s)))
}

func bigEndian(v uint16) uint16 {
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		return v
	}
	return bits.ReverseBytes16(v)
}

// fixed is a text in an array of n zero-padded bytes.
func fixed(text string, n int) []byte {
	b := make([]byte, n)
	copy(b, text)
	return b
}

// attr appends an attribute, padded to four bytes (netlink(7)).
func attr(b []byte, typ uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofRtAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	for len(b)%unix.NLA_ALIGNTO != 0 {
		b = append(b, 0)
	}
	return b
}

func attr32(b []byte, typ uint16, v uint32) []byte {
	return attr(b, typ, binary.NativeEndian.AppendUint32(nil, v))
}
