package wire

import (
	"encoding/binary"
	"fmt"
)

// Reader takes fields off the front of a byte string. The first failure sticks:
// it is what Err returns, and every later read returns zero.
type Reader struct {
	b         []byte
	malformed error
	err       error
}

// NewReader returns a reader of b. Every failure wraps malformed.
func NewReader(b []byte, malformed error) *Reader { return &Reader{b: b, malformed: malformed} }

// Fail makes the reader fail for a reason of the parser's, unless it has failed
// already.
func (r *Reader) Fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", r.malformed, fmt.Sprintf(format, args...))
	}
	r.b = nil
}

// Err returns the first failure, nil if there was none.
func (r *Reader) Err() error { return r.err }

// Rest returns what was not read yet, nil after a failure.
func (r *Reader) Rest() []byte { return r.b }

// Done ends the reading of something that fills the input: bytes that were not
// read are a failure. It returns the first one.
func (r *Reader) Done() error {
	if len(r.b) != 0 {
		r.Fail("%d bytes too many", len(r.b))
	}
	return r.err
}

// Take returns the next n bytes, which alias the input, or nil. n is not
// negative.
func (r *Reader) Take(n int) []byte {
	if r.err == nil && len(r.b) < n {
		r.Fail("ends %d bytes early", n-len(r.b))
	}
	if r.err != nil {
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

// Fill reads as many bytes as dst has into it. It leaves dst as it is after a
// failure.
func (r *Reader) Fill(dst []byte) { copy(dst, r.Take(len(dst))) }

// U8 reads one byte.
func (r *Reader) U8() uint8 {
	if b := r.Take(1); b != nil {
		return b[0]
	}
	return 0
}

// U16 reads a number of two bytes.
func (r *Reader) U16() uint16 {
	if b := r.Take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

// U32 reads a number of four bytes.
func (r *Reader) U32() uint32 {
	if b := r.Take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// U64 reads a number of eight bytes.
func (r *Reader) U64() uint64 {
	if b := r.Take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// Count checks n, the length of a list of what, against its limit and against
// what the rest of the input can hold if each element has minSize bytes, so
// that the caller may allocate. It returns n, or 0 after a failure.
func (r *Reader) Count(what string, n, limit, minSize int) int {
	if r.err == nil && n > limit {
		r.Fail("%d %s, at most %d", n, what, limit)
	}
	if r.err == nil && n*minSize > len(r.b) {
		r.Fail("%d %s do not fit the rest of %d bytes", n, what, len(r.b))
	}
	if r.err != nil {
		return 0
	}
	return n
}

// Block reads a length u16 of at most limit and that many bytes, which alias
// the input. It returns nil after a failure; what is for the error.
func (r *Reader) Block(what string, limit int) []byte {
	return r.Take(r.Count("bytes of "+what, int(r.U16()), limit, 1))
}
