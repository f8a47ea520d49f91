package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/secure-overlay/secure-overlay/membership/internal/wire"
)

// ErrMalformed is wrapped by every error about bytes or content that cannot
// be a record, whoever signed it.
var ErrMalformed = errors.New("record is malformed")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMalformed, fmt.Sprintf(format, args...))
}

// Address families on the wire.
const (
	family4 = 4
	family6 = 6
)

// writer appends big-endian fields. It cannot fail: limits are checked by
// Validate before anything is written.
type writer struct{ b []byte }

func (w *writer) u8(v uint8)   { w.b = append(w.b, v) }
func (w *writer) u16(v uint16) { w.b = binary.BigEndian.AppendUint16(w.b, v) }
func (w *writer) u32(v uint32) { w.b = binary.BigEndian.AppendUint32(w.b, v) }
func (w *writer) u64(v uint64) { w.b = binary.BigEndian.AppendUint64(w.b, v) }

func (w *writer) bytes(b []byte) { w.b = append(w.b, b...) }

func (w *writer) addr(a netip.Addr) {
	if a.Is4() {
		w.u8(family4)
	} else {
		w.u8(family6)
	}
	w.b = append(w.b, a.AsSlice()...)
}

func (w *writer) prefix(p netip.Prefix) {
	w.addr(p.Addr())
	w.u8(uint8(p.Bits()))
}

func (w *writer) name(s string) {
	w.u8(uint8(len(s)))
	w.bytes([]byte(s))
}

func (w *writer) addrs(list []netip.Addr) {
	w.u8(uint8(len(list)))
	for _, a := range list {
		w.addr(a)
	}
}

func (w *writer) prefixes(list []netip.Prefix) {
	w.u8(uint8(len(list)))
	for _, p := range list {
		w.prefix(p)
	}
}

// reader reads what records are made of.
type reader struct{ *wire.Reader }

func newReader(b []byte) reader { return reader{wire.NewReader(b, ErrMalformed)} }

func (r reader) addr() netip.Addr {
	switch f := r.U8(); {
	case r.Err() != nil:
	case f == family4:
		if b := r.Take(4); b != nil {
			return netip.AddrFrom4([4]byte(b))
		}
	case f == family6:
		if b := r.Take(16); b != nil {
			return netip.AddrFrom16([16]byte(b))
		}
	default:
		r.Fail("address family %d", f)
	}
	return netip.Addr{}
}

func (r reader) prefix() netip.Prefix {
	a := r.addr()
	return netip.PrefixFrom(a, int(r.U8()))
}
