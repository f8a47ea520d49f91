package keys

import (
	"crypto/rand"
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
	"sync"
)

// secretSize is the length in bytes of every secret of this package.
const secretSize = 32

// redacted is what every way of printing a secret gives.
const redacted = "[secret]"

// box is the middle of the two indirections between a private type and its
// bytes. fmt follows one pointer when it reports a wrong verb, even where it
// may not call methods (an unexported field of a foreign struct); behind that
// pointer it finds this struct, and in it a pointer again, which it prints as
// an address. One indirection less and the bytes would appear.
//
// mu guards bytes. The box is shared by every copy of the private value, so
// that Wipe reaches all of them.
type box struct {
	mu    sync.RWMutex
	bytes *[secretSize]byte
}

// secret is the body of every private type of this package. Its methods are
// promoted: they are the whole of what all private types have in common. It
// has no marshal method of any kind, so no encoder can write its bytes.
type secret struct {
	_   [0]func() // makes == a compile error: comparison must be constant time
	box *box
}

// newSecret returns 32 bytes from the operating system's generator.
// crypto/rand.Read never returns an error since Go 1.24: the process dies
// rather than go on without randomness.
func newSecret() secret {
	var b [secretSize]byte
	rand.Read(b[:])
	s := boxed(&b)
	clear(b[:])
	return s
}

// secretFrom copies raw, which must be 32 bytes and not all zero: the zero
// secret stands for "no key" and must not come into being from a damaged
// file. The error tells the length only.
func secretFrom(what string, raw []byte) (secret, error) {
	if len(raw) != secretSize {
		return secret{}, fmt.Errorf("read %s: want %d bytes, have %d", what, secretSize, len(raw))
	}
	s := boxed((*[secretSize]byte)(raw))
	if s.IsZero() {
		return secret{}, fmt.Errorf("read %s: all bytes are zero", what)
	}
	return s, nil
}

func boxed(b *[secretSize]byte) secret {
	c := *b
	return secret{box: &box{bytes: &c}}
}

// Expose calls f with a copy of the 32 secret bytes and clears the copy when
// f returns. It is the only way out; grep for it to audit who reads keys. f
// must not keep the slice. On a zero or wiped value f is not called.
func (s secret) Expose(f func(raw []byte)) {
	if s.IsZero() {
		return
	}
	// A copy, so that f neither holds a lock nor can alter the key.
	raw := s.copyOut()
	defer clear(raw[:])
	f(raw[:])
}

func (s secret) copyOut() (c [secretSize]byte) {
	if s.box == nil {
		return c
	}
	s.box.mu.RLock()
	defer s.box.mu.RUnlock()
	return *s.box.bytes
}

// Wipe overwrites the bytes. Every copy of the value is empty afterwards:
// IsZero is true, Expose does nothing, signatures are invalid. Copies that
// the runtime or a library made of the bytes are out of its reach.
func (s secret) Wipe() {
	if s.box == nil {
		return
	}
	s.box.mu.Lock()
	defer s.box.mu.Unlock()
	clear(s.box.bytes[:])
}

// IsZero reports whether there is no key: the zero value, or wiped.
func (s secret) IsZero() bool {
	raw := s.copyOut()
	defer clear(raw[:])
	var zero [secretSize]byte
	return subtle.ConstantTimeCompare(raw[:], zero[:]) == 1
}

// equal compares in constant time. Two empty values are equal.
func (s secret) equal(o secret) bool {
	a, b := s.copyOut(), o.copyOut()
	defer clear(a[:])
	defer clear(b[:])
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// clone returns the same bytes in a box of its own.
func (s secret) clone() secret {
	raw := s.copyOut()
	defer clear(raw[:])
	return boxed(&raw)
}

// String returns a constant, never the key.
func (s secret) String() string { return redacted }

// GoString returns a constant, never the key.
func (s secret) GoString() string { return redacted }

// Format writes a constant, never the key, whatever the verb.
func (s secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// LogValue returns a constant, never the key.
func (s secret) LogValue() slog.Value { return slog.StringValue(redacted) }
