package xfrm

import (
	"bytes"
	"math"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	rtnl "github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func states() map[string]State {
	v4 := State{
		Src: netip.MustParseAddr("198.18.0.1"), Dst: netip.MustParseAddr("198.18.0.2"), SPI: 0xfedcba98,
		IfID: 0x80000001, ReqID: 0xdeadbeef, From: netip.MustParseAddr("fd00::1"), To: netip.MustParseAddr("fd00::2"),
	}
	v6 := v4
	v6.Src, v6.Dst = netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")
	udp := v6
	udp.Encap = Encap{Src: 4500, Dst: 51000}
	return map[string]State{"IPv4": v4, "IPv6": v6, "in UDP": udp}
}

var byValue = cmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestState(t *testing.T) {
	for name, s := range states() {
		t.Run(name, func(t *testing.T) {
			material := bytes.Repeat([]byte{0xa5}, 36)
			body := encodeState(s, material)
			if len(body) > messageMax || cap(body) != messageMax {
				t.Errorf("%d of %d bytes: the buffer has grown, and left a copy of the key", len(body), cap(body))
			}
			if !bytes.Contains(body, material) {
				t.Error("the key is not in the message")
			}
			got, ok := decodeState(body)
			if diff := cmp.Diff(s, got, byValue); !ok || diff != "" {
				t.Errorf("read back: %v (-want +got):\n%s", ok, diff)
			}
			for n := range len(body) {
				if _, ok := decodeState(body[:n]); ok && n < rtnl.SizeofXfrmUsersaInfo {
					t.Errorf("%d of %d bytes decode", n, len(body))
				}
			}
		})
	}
}

// TestForm compares a message with what the kernel's headers say, byte for
// byte where it matters.
func TestForm(t *testing.T) {
	s := states()["IPv4"]
	body := encodeState(s, make([]byte, 36))
	msg := rtnl.DeserializeXfrmUsersaInfo(body)
	if msg.Mode != 1 || msg.Family != unix.AF_INET || msg.Id.Proto != 50 || msg.ReplayWindow != 0 || msg.Flags != 128|4 {
		t.Errorf("mode %d, family %d, protocol %d, window %d, flags %d", msg.Mode, msg.Family, msg.Id.Proto, msg.ReplayWindow, msg.Flags)
	}
	if !bytes.Equal(body[72:76], []byte{0xfe, 0xdc, 0xba, 0x98}) {
		t.Errorf("the index is %x on the wire", body[72:76])
	}
	if msg.Lft.HardByteLimit != math.MaxUint64 || msg.Lft.HardPacketLimit != math.MaxUint64 || msg.Lft.HardAddExpiresSeconds != 0 {
		t.Error("the lifetime is limited")
	}
	attrs, ok := parseAttrs(body[rtnl.SizeofXfrmUsersaInfo:])
	if !ok || len(attrs) != 4 {
		t.Fatalf("%d attributes", len(attrs))
	}
	algo := rtnl.DeserializeXfrmAlgoAEAD(attrs[0].Value)
	name, bits, tag := rtnl.BytesToString(algo.AlgName[:]), algo.AlgKeyLen, algo.AlgICVLen
	if attrs[0].Attr.Type != rtnl.XFRMA_ALG_AEAD || name != "rfc4106(gcm(aes))" || bits != 288 || tag != 128 {
		t.Errorf("algorithm %s with %d bits and a tag of %d", name, bits, tag)
	}
	esn := attrs[1]
	if esn.Attr.Type != rtnl.XFRMA_REPLAY_ESN_VAL || len(esn.Value) != 24+128 || read32(esn.Value) != 32 || read32(esn.Value[20:]) != 1024 {
		t.Errorf("replay window %x", esn.Value)
	}
}

func TestPolicy(t *testing.T) {
	for name, s := range states() {
		for _, d := range []Dir{In, Out} {
			p := s.Policy(d)
			got, exact, ok := decodePolicy(encodePolicy(p))
			if diff := cmp.Diff(p, got, byValue); !ok || !exact || diff != "" {
				t.Errorf("%s: read back: %v, exact %v (-want +got):\n%s", name, ok, exact, diff)
			}
			if p.Name() != s.Name() {
				t.Errorf("%s: asks for %v, the association is %v", name, p.Name(), s.Name())
			}
			id, from, to := decodeIfID(encodePolicy(p), rtnl.SizeofXfrmUserpolicyInfo)
			if id != p.IfID || from != p.From || to != p.To {
				t.Errorf("%s: interface ID %08x from %s to %s", name, id, from, to)
			}
		}
	}
}

// TestInexact changes what a policy of ours never has.
func TestInexact(t *testing.T) {
	p := states()["IPv4"].Policy(Out)
	change := func(f func(*rtnl.XfrmUserpolicyInfo)) []byte {
		b := encodePolicy(p)
		f(rtnl.DeserializeXfrmUserpolicyInfo(b))
		return b
	}
	for name, c := range map[string]struct {
		raw       []byte
		ok, exact bool
	}{
		"as it is":     {encodePolicy(p), true, true},
		"blocks":       {change(func(m *rtnl.XfrmUserpolicyInfo) { m.Action = 1 }), true, false},
		"other rank":   {change(func(m *rtnl.XfrmUserpolicyInfo) { m.Priority = 1 }), true, false},
		"wide":         {change(func(m *rtnl.XfrmUserpolicyInfo) { m.Sel.PrefixlenS = 64 }), false, false},
		"IPv4":         {change(func(m *rtnl.XfrmUserpolicyInfo) { m.Sel.Family = unix.AF_INET }), false, false},
		"one port":     {change(func(m *rtnl.XfrmUserpolicyInfo) { m.Sel.DportMask = 0xffff }), false, false},
		"one protocol": {change(func(m *rtnl.XfrmUserpolicyInfo) { m.Sel.Proto = 17 }), false, false},
		"forwarding":   {change(func(m *rtnl.XfrmUserpolicyInfo) { m.Dir = 2 }), false, false},
		"asks nothing": {encodePolicy(p)[:rtnl.SizeofXfrmUserpolicyInfo], true, false},
		"marked":       {attr(encodePolicy(p), rtnl.XFRMA_MARK, make([]byte, 8)), false, false},
	} {
		if _, exact, ok := decodePolicy(c.raw); ok != c.ok || exact != c.exact {
			t.Errorf("%s: read %v, exact %v", name, ok, exact)
		}
	}
}

func TestUsage(t *testing.T) {
	s := states()["IPv6"]
	raw := encodeUsage(s.Name())
	copy(raw[24:], s.Src.AsSlice())
	copy(raw[44:], []byte{0xef, 0xbe, 0xad, 0xde})
	life := make([]byte, 32)
	life[0], life[8] = 77, 3
	raw = attr32(attr(raw, rtnl.XFRMA_LTIME_VAL, life), rtnl.XFRMA_IF_ID, s.IfID)
	want := Usage{Src: s.Src, IfID: s.IfID, ReqID: s.ReqID, Bytes: 77, Packets: 3}
	if got, ok := decodeUsage(raw); !ok || got != want {
		t.Errorf("usage = %+v, want %+v", got, want)
	}
}

// FuzzDecode gives the decoders what no kernel would send.
func FuzzDecode(f *testing.F) {
	for _, s := range states() {
		f.Add(encodeState(s, make([]byte, 36)))
		f.Add(encodePolicy(s.Policy(Out)))
		f.Add(attr(encodeUsage(s.Name()), rtnl.XFRMA_LTIME_VAL, make([]byte, 32)))
	}
	f.Fuzz(func(t *testing.T, m []byte) {
		if s, ok := decodeState(m); ok {
			again, ok := decodeState(encodeState(s, nil))
			if !ok || again != s {
				t.Errorf("%+v becomes %+v", s, again)
			}
		}
		if p, exact, ok := decodePolicy(m); ok && exact && p.Dst.IsValid() && p.Src.IsValid() {
			again, _, ok := decodePolicy(encodePolicy(p))
			if !ok || again.From != p.From || again.To != p.To || again.SPI != p.SPI || again.ReqID != p.ReqID || again.IfID != p.IfID {
				t.Errorf("%+v becomes %+v", p, again)
			}
		}
		decodeUsage(m)
		decodeIfID(m, rtnl.SizeofXfrmUsersaInfo)
	})
}
