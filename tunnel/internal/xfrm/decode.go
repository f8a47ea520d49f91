package xfrm

import (
	"encoding/binary"
	"net/netip"
	"syscall"

	rtnl "github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// decodeState reads a message of XFRM_MSG_NEWSA. It reports false for what
// State cannot describe, such as an association of another program. It does
// not look at the attributes with keys.
func decodeState(m []byte) (State, bool) {
	if len(m) < rtnl.SizeofXfrmUsersaInfo {
		return State{}, false
	}
	msg := rtnl.DeserializeXfrmUsersaInfo(m)
	from, to, ok := inner(&msg.Sel)
	if !ok || msg.Id.Proto != unix.IPPROTO_ESP || msg.Mode != modeTunnel {
		return State{}, false
	}
	s := State{SPI: readSPI(msg.Id.Spi), ReqID: msg.Reqid, From: from, To: to}
	s.Src, s.Dst = readAddress(msg.Saddr, msg.Family), readAddress(msg.Id.Daddr, msg.Family)
	attrs, ok := parseAttrs(m[rtnl.SizeofXfrmUsersaInfo:])
	for _, a := range attrs {
		switch a.Attr.Type {
		case rtnl.XFRMA_IF_ID:
			s.IfID = read32(a.Value)
		case rtnl.XFRMA_ENCAP:
			// struct xfrm_encap_tmpl: type, then the ports.
			if len(a.Value) >= 6 {
				s.Encap = Encap{Src: binary.BigEndian.Uint16(a.Value[2:]), Dst: binary.BigEndian.Uint16(a.Value[4:])}
			}
		}
	}
	return s, ok && s.Src.IsValid() && s.Dst.IsValid()
}

// decodePolicy reads a message of XFRM_MSG_NEWPOLICY. The policy is exact if
// it does what it says and no more: encodePolicy would have made the same. It
// reports false for what has no place in Policy, such as a policy of another
// program.
func decodePolicy(m []byte) (p Policy, exact, ok bool) {
	if len(m) < rtnl.SizeofXfrmUserpolicyInfo {
		return Policy{}, false, false
	}
	msg := rtnl.DeserializeXfrmUserpolicyInfo(m)
	p.Dir = Dir(msg.Dir)
	if p.From, p.To, ok = inner(&msg.Sel); !ok || (p.Dir != In && p.Dir != Out) {
		return Policy{}, false, false
	}
	attrs, ok := parseAttrs(m[rtnl.SizeofXfrmUserpolicyInfo:])
	if !ok {
		return Policy{}, false, false
	}
	for _, a := range attrs {
		switch a.Attr.Type {
		case rtnl.XFRMA_IF_ID:
			p.IfID = read32(a.Value)
		case rtnl.XFRMA_TMPL:
			exact = readTemplate(&p, a.Value)
		case rtnl.XFRMA_MARK, rtnl.XFRMA_SEC_CTX, rtnl.XFRMA_OFFLOAD_DEV:
			return Policy{}, false, false // never ours
		}
	}
	return p, exact && msg.Action == policyAllow && msg.Priority == priority, true
}

// readTemplate reads the association that a policy asks for, and reports
// whether that is all it asks for.
func readTemplate(p *Policy, raw []byte) bool {
	if len(raw) < rtnl.SizeofXfrmUserTmpl {
		return false
	}
	t := rtnl.DeserializeXfrmUserTmpl(raw)
	p.Src, p.Dst = readAddress(t.Saddr, t.Family), readAddress(t.XfrmId.Daddr, t.Family)
	p.SPI, p.ReqID = readSPI(t.XfrmId.Spi), t.Reqid
	return len(raw) == rtnl.SizeofXfrmUserTmpl && t.XfrmId.Proto == unix.IPPROTO_ESP && t.Mode == modeTunnel && t.Optional == 0
}

// decodeUsage reads a message of XFRM_MSG_NEWAE.
func decodeUsage(m []byte) (u Usage, ok bool) {
	if len(m) < aeventSize {
		return Usage{}, false
	}
	// struct xfrm_aevent_id: sa_id (24), saddr (16), flags (4), reqid (4).
	id := rtnl.DeserializeXfrmUsersaId(m)
	u.Src = readAddress(rtnl.XfrmAddress(m[24:40]), id.Family)
	u.ReqID = binary.NativeEndian.Uint32(m[44:])
	attrs, ok := parseAttrs(m[aeventSize:])
	for _, a := range attrs {
		switch a.Attr.Type {
		case rtnl.XFRMA_IF_ID:
			u.IfID = read32(a.Value)
		case rtnl.XFRMA_LTIME_VAL:
			if len(a.Value) >= 16 { // struct xfrm_lifetime_cur
				u.Bytes, u.Packets = binary.NativeEndian.Uint64(a.Value), binary.NativeEndian.Uint64(a.Value[8:])
			}
		}
	}
	return u, ok
}

// inner returns the addresses of a selector that matches exactly one IPv6
// source and destination and everything between them.
func inner(s *rtnl.XfrmSelector) (from, to netip.Addr, ok bool) {
	if s.Family != unix.AF_INET6 || s.PrefixlenD != 128 || s.PrefixlenS != 128 ||
		s.Proto != 0 || s.SportMask != 0 || s.DportMask != 0 || s.Ifindex != 0 {
		return netip.Addr{}, netip.Addr{}, false
	}
	return netip.AddrFrom16(s.Saddr), netip.AddrFrom16(s.Daddr), true
}

func parseAttrs(b []byte) ([]syscall.NetlinkRouteAttr, bool) {
	attrs, err := nl.ParseAttrs(b)
	return attrs, err == nil
}

func readAddress(a rtnl.XfrmAddress, family uint16) netip.Addr {
	switch family {
	case unix.AF_INET:
		return netip.AddrFrom4([4]byte(a[:4]))
	case unix.AF_INET6:
		return netip.AddrFrom16(a)
	}
	return netip.Addr{}
}

func readSPI(v uint32) ids.SPI {
	return ids.SPI(binary.BigEndian.Uint32(binary.NativeEndian.AppendUint32(nil, v)))
}

func read32(v []byte) uint32 {
	if len(v) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(v)
}

// decodeIfID reads what XFRM_MSG_NEWSA and XFRM_MSG_NEWPOLICY have in common: a
// selector in front, and behind a header of the given length the interface ID.
// The addresses are zero unless the selector is of two single ones.
func decodeIfID(m []byte, header int) (id uint32, from, to netip.Addr) {
	if len(m) < header {
		return 0, from, to
	}
	from, to, _ = inner(rtnl.DeserializeXfrmSelector(m))
	attrs, _ := parseAttrs(m[header:])
	for _, a := range attrs {
		if a.Attr.Type == rtnl.XFRMA_IF_ID {
			id = read32(a.Value)
		}
	}
	return id, from, to
}
