package noisenet

import (
	"encoding/binary"
	"fmt"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// The versions this build speaks. Version 2 adds the hybrid step to member
// streams: an ML-KEM secret in the key schedule. A join has version 1 only: its
// preshared key is a random secret for one use that never was on a wire, so a
// recording of it stays closed to whoever breaks X25519 later.
const (
	versionMin     = 1
	versionHybrid  = 2
	versionMax     = 2
	versionMaxJoin = 1
)

// The versions of member streams that this build speaks.
const (
	VersionMin = versionMin
	VersionMax = versionMax
)

// Kinds of stream, in the clear header.
const (
	streamMember = 1
	streamJoin   = 2
)

const headerSize = 10

// header is the only clear part of a stream: "SO", version range, kind, zero,
// key ID. It chooses a key and a version and promises nothing: the whole of it
// goes into the prologue, so a changed bit fails the handshake.
type header struct {
	min, max uint8
	kind     uint8
	keyID    uint32 // which psk: accessKeyID, or the low 32 bits of a token ID
}

func (h header) encode() [headerSize]byte {
	var b [headerSize]byte
	copy(b[:], "SO")
	b[2], b[3], b[4] = h.min, h.max, h.kind
	binary.BigEndian.PutUint32(b[6:], h.keyID)
	return b
}

// parseHeader is canonical: what it accepts encodes to the same bytes.
func parseHeader(b []byte) (header, error) {
	if len(b) != headerSize || b[0] != 'S' || b[1] != 'O' || b[5] != 0 {
		return header{}, fmt.Errorf("read stream header: not this protocol")
	}
	h := header{min: b[2], max: b[3], kind: b[4], keyID: binary.BigEndian.Uint32(b[6:])}
	if h.min == 0 || h.min > h.max {
		return header{}, fmt.Errorf("read stream header: version range %d-%d is empty", h.min, h.max)
	}
	if h.kind != streamMember && h.kind != streamJoin {
		return header{}, fmt.Errorf("read stream header: kind %d is unknown", h.kind)
	}
	return h, nil
}

// chooseVersion is the choice of a responder that takes versions from least to
// most: the highest both know.
func (h header) chooseVersion(least, most uint8) (uint8, error) {
	v := min(h.max, most)
	if v < max(h.min, least) {
		return 0, fmt.Errorf("choose version: peer speaks %d-%d, this node %d-%d: %w",
			h.min, h.max, least, most, ErrVersion)
	}
	return v, nil
}

// prologue binds header and cluster into the handshake: a stripped version
// range or another cluster's peer fails at the first message.
func (h header) prologue(c ids.ClusterID) []byte {
	b := h.encode()
	return append(b[:], c[:]...)
}
