package kdf

import (
	"crypto/hmac"
	"crypto/sha256"
)

// Size is the length in bytes of a MAC, and of the pseudorandom keys that
// Extract gives and Expand takes.
const Size = sha256.Size

// MAC is HMAC-SHA256 (RFC 2104) of the joined parts. With a salt as the key it
// is HKDF-Extract (RFC 5869 section 2.2).
func MAC(key []byte, parts ...[]byte) (out [Size]byte) {
	m := hmac.New(sha256.New, key)
	for _, p := range parts {
		m.Write(p)
	}
	sum := m.Sum(make([]byte, 0, Size))
	copy(out[:], sum)
	clear(sum)
	// A hash keeps its input until a block is full: overwrite that.
	m.Reset()
	m.Write(make([]byte, m.BlockSize()-1))
	return out
}

// Expand fills out with HKDF-Expand (RFC 5869 section 2.3) of a pseudorandom
// key and an info: at most 255 times Size bytes, a longer one panics.
func Expand(key, info, out []byte) {
	if len(out) > 255*Size {
		panic("kdf: expand: more than 255 blocks")
	}
	var last [Size]byte
	var before []byte // of the first block there is none before
	for i := byte(1); len(out) > 0; i++ {
		last = MAC(key, before, info, []byte{i})
		out = out[copy(out, last[:]):]
		before = last[:]
	}
	clear(last[:])
}
