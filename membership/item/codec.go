package item

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/internal/wire"
)

// Numbers of the signers on the wire.
const (
	signerRoot   = 1
	signerIssuer = 2
)

// maxDelegation bounds a delegation in bytes; that of today has 142.
const maxDelegation = 256

// MaxSize is the length in bytes of the largest item: 1,489.
const MaxSize = len(keys.DomainItem) + 16 + 1 + 1 + MaxKey + 8 + 8 + 2 + MaxBody + 1 + 2 + maxDelegation + 32 + keys.SignatureSize

// Times are unix seconds from 2000-01-01 to 9999-12-31, as in keys.
const (
	minTime = 946684800
	maxTime = 253402300799
)

// encode returns the bytes of an item without its signature.
func encode(cluster ids.ClusterID, it *Item) []byte {
	b := make([]byte, 0, MaxSize)
	b = append(b, keys.DomainItem...)
	b = append(b, cluster[:]...)
	b = append(b, uint8(it.Slot.Kind), uint8(len(it.Slot.Key)))
	b = append(b, it.Slot.Key...)
	b = binary.BigEndian.AppendUint64(b, it.Version)
	b = binary.BigEndian.AppendUint64(b, uint64(it.Created.Unix()))
	b = binary.BigEndian.AppendUint16(b, uint16(len(it.Body)))
	b = append(b, it.Body...)
	if it.Root {
		b = append(b, signerRoot)
	} else {
		b = append(b, signerIssuer)
		b = binary.BigEndian.AppendUint16(b, uint16(len(it.Delegation)))
		b = append(b, it.Delegation...)
	}
	return append(b, it.Signer[:]...)
}

// validate checks what an item says, as far as this build knows its kind.
func (it *Item) validate() error {
	switch sec := it.Created.Unix(); {
	case it.Slot.Kind == 0:
		return malformed("kind is 0")
	case len(it.Slot.Key) > MaxKey:
		return malformed("key of %d bytes, at most %d", len(it.Slot.Key), MaxKey)
	case it.Version == 0:
		return malformed("version is 0")
	case sec < minTime || sec > maxTime:
		return malformed("time of creation is outside 2000..9999")
	case len(it.Body) > MaxBody:
		return malformed("body of %d bytes, at most %d", len(it.Body), MaxBody)
	case len(it.Delegation) > maxDelegation:
		return malformed("delegation of %d bytes, at most %d", len(it.Delegation), maxDelegation)
	case it.Root != (len(it.Delegation) == 0):
		return malformed("an issuer's item has a delegation, the root's has none")
	}
	var err error
	switch it.Slot.Kind {
	case KindTarget:
		_, err = parseTarget(it)
	case KindRevocation:
		_, err = parseRevocation(it)
	case KindAccess:
		_, err = parseAccess(it)
	case KindIssuer:
		_, err = parseIssuer(it)
	case KindFloor:
		_, err = parseFloor(it)
	case KindNetwork:
		_, err = parseNetwork(it)
	case KindHeartbeat:
		_, err = parseHeartbeat(it)
	}
	return err
}

// Parse reads an item. It checks everything but the signatures: what it returns
// is a claim until Verify has accepted the same bytes. What parses has no
// other spelling. The item aliases raw.
func Parse(raw []byte) (*Item, error) {
	_, it, err := parse(raw)
	return it, err
}

func parse(raw []byte) (cluster ids.ClusterID, it *Item, err error) {
	if len(raw) > MaxSize {
		return cluster, nil, malformed("%d bytes, at most %d", len(raw), MaxSize)
	}
	r := newReader(raw)
	if string(r.Take(len(keys.DomainItem))) != keys.DomainItem {
		r.Fail("does not begin with %s", keys.DomainItem)
	}
	r.Fill(cluster[:])
	it = &Item{Raw: raw}
	it.Slot = r.slot()
	it.Version = r.U64()
	it.Created = r.time()
	it.Body = r.Block("body", MaxBody)
	switch n := r.U8(); {
	case r.Err() != nil:
	case n == signerRoot:
		it.Root = true
	case n == signerIssuer:
		it.Delegation = r.Block("delegation", maxDelegation)
	default:
		r.Fail("signer %d", n)
	}
	r.Fill(it.Signer[:])
	if left := len(r.Rest()); left != keys.SignatureSize {
		r.Fail("%d bytes after the content, want a signature of %d", left, keys.SignatureSize)
	}
	if r.Err() != nil {
		return cluster, nil, r.Err()
	}
	if err := it.validate(); err != nil {
		return cluster, nil, err
	}
	// As in record: this does not depend on the checks above being complete.
	if !bytes.Equal(encode(cluster, it), raw[:len(raw)-keys.SignatureSize]) {
		return cluster, nil, malformed("not in canonical form")
	}
	it.Hash = sha256.Sum256(raw)
	return cluster, it, nil
}

// reader reads what items are made of.
type reader struct{ *wire.Reader }

func newReader(b []byte) reader { return reader{wire.NewReader(b, ErrMalformed)} }

// time reads unix seconds. The range is checked here, because a number beyond
// it could come back as another one.
func (r reader) time() time.Time {
	sec := r.U64()
	if r.Err() == nil && (sec < minTime || sec > maxTime) {
		r.Fail("time of creation is outside 2000..9999")
	}
	return time.Unix(int64(sec), 0).UTC()
}
