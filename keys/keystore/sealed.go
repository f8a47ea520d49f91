package keystore

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/crypto/argon2"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/secure-overlay/secure-overlay/keys"
)

// A sealed root key file is one line: the tag, then base64 of
//
//	version u8 = 1 | passes u32 | memory in KiB u32 | lanes u8 | salt 16 |
//	nonce 24 | XChaCha20-Poly1305 of the 32 bytes of the key
//
// under Argon2id (RFC 9106) of the passphrase. The tag and all that stands before
// the nonce are authenticated, too, so that nobody can make the next guess cheaper.

// ErrPassphrase: the passphrase does not open the root key file, or the file was
// changed: the two cannot be told apart.
var ErrPassphrase = errors.New("passphrase does not open it")

// MinPassphrase is the shortest passphrase that seals a root key, in bytes.
const MinPassphrase = 12

// Cost of Argon2id for new files: RFC 9106, section 4, second recommended option.
// A file says what it was made with, within bounds: reading one must not take
// the machine's memory.
const (
	sealPasses, sealMemory, sealLanes = 3, 64 << 10, 4

	maxSealPasses, maxSealMemory, maxSealLanes = 64, 1 << 20, 64
)

const (
	sealVersion  = 1
	sealHead     = 1 + 4 + 4 + 1 + 16
	sealedLength = sealHead + chacha20poly1305.NonceSizeX + 32 + chacha20poly1305.Overhead
)

// sealRoot gives the content of a sealed root key file.
func sealRoot(root keys.RootPrivate, passphrase []byte) ([]byte, error) {
	if len(passphrase) < MinPassphrase {
		return nil, fmt.Errorf("passphrase of %d bytes: want at least %d", len(passphrase), MinPassphrase)
	}
	b := []byte{sealVersion}
	b = binary.BigEndian.AppendUint32(b, sealPasses)
	b = binary.BigEndian.AppendUint32(b, sealMemory)
	b = append(b, sealLanes)
	random := make([]byte, 16+chacha20poly1305.NonceSizeX)
	rand.Read(random)
	b = append(b, random...)
	aead, err := sealKey(b[:sealHead], passphrase)
	if err != nil {
		return nil, err
	}
	root.Expose(func(raw []byte) { b = aead.seal(b, raw) })
	return objectLine(sealedRootTag, b), nil
}

// openRoot reads the content of a sealed root key file.
func openRoot(line, passphrase []byte) (keys.RootPrivate, error) {
	b, err := parseObjectLine(sealedRootTag, bytes.TrimSuffix(line, []byte("\n")))
	if err != nil {
		return keys.RootPrivate{}, err
	}
	if len(b) != sealedLength || b[0] != sealVersion {
		return keys.RootPrivate{}, fmt.Errorf("%s: %d bytes, want %d of version %d: %w", sealedRootTag, len(b), sealedLength, sealVersion, ErrCorrupt)
	}
	aead, err := sealKey(b[:sealHead], passphrase)
	if err != nil {
		return keys.RootPrivate{}, err
	}
	raw, err := aead.open(b[sealHead:])
	if err != nil {
		return keys.RootPrivate{}, ErrPassphrase
	}
	defer clear(raw)
	return keys.RootPrivateFromRaw32(raw)
}

// sealer encrypts one key under one passphrase and one salt.
type sealer struct{ key, aad []byte }

// sealKey derives the key that head and a passphrase say.
func sealKey(head, passphrase []byte) (sealer, error) {
	passes, memory, lanes := binary.BigEndian.Uint32(head[1:]), binary.BigEndian.Uint32(head[5:]), head[9]
	if passes < 1 || passes > maxSealPasses || memory < 8*uint32(lanes) || memory > maxSealMemory || lanes < 1 || lanes > maxSealLanes {
		return sealer{}, fmt.Errorf("cost of the passphrase: %d passes over %d KiB in %d lanes is out of range: %w", passes, memory, lanes, ErrCorrupt)
	}
	key := argon2.IDKey(passphrase, head[10:sealHead], passes, memory, lanes, chacha20poly1305.KeySize)
	return sealer{key: key, aad: append([]byte(sealedRootTag), head...)}, nil
}

// seal appends the sealed key to b, which ends in the nonce.
func (s sealer) seal(b, raw []byte) []byte {
	defer clear(s.key)
	aead, err := chacha20poly1305.NewX(s.key)
	if err != nil {
		panic(err) // the key has the right length
	}
	return aead.Seal(b, b[sealHead:], raw, s.aad)
}

// open takes nonce and sealed key.
func (s sealer) open(b []byte) ([]byte, error) {
	defer clear(s.key)
	aead, err := chacha20poly1305.NewX(s.key)
	if err != nil {
		return nil, err
	}
	return aead.Open(nil, b[:chacha20poly1305.NonceSizeX], b[chacha20poly1305.NonceSizeX:], s.aad)
}
