package record

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
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

// reader takes fields off the front of b. The first failure sticks: every
// later read returns zero, so a parser checks err once per group of fields.
// It allocates nothing; count bounds every list before its caller does.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = malformed(format, args...)
	}
	r.b = nil
}

// take returns the next n bytes, which alias the input, or nil.
func (r *reader) take(n int) []byte {
	if r.err == nil && len(r.b) < n {
		r.fail("ends %d bytes early", n-len(r.b))
	}
	if r.err != nil {
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u8() uint8 {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// count checks the length of a list against its limit and against what the
// rest of the input can hold at least, so that the caller may allocate.
func (r *reader) count(what string, n, limit, minSize int) int {
	if r.err == nil && n > limit {
		r.fail("%d %s, at most %d", n, what, limit)
	}
	if r.err == nil && n*minSize > len(r.b) {
		r.fail("%d %s do not fit the rest of %d bytes", n, what, len(r.b))
	}
	if r.err != nil {
		return 0
	}
	return n
}

func (r *reader) addr() netip.Addr {
	switch f := r.u8(); {
	case r.err != nil:
	case f == family4:
		if b := r.take(4); b != nil {
			return netip.AddrFrom4([4]byte(b))
		}
	case f == family6:
		if b := r.take(16); b != nil {
			return netip.AddrFrom16([16]byte(b))
		}
	default:
		r.fail("address family %d", f)
	}
	return netip.Addr{}
}

func (r *reader) prefix() netip.Prefix {
	a := r.addr()
	return netip.PrefixFrom(a, int(r.u8()))
}
