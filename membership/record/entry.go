package record

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// MaxCredential is the largest delegation or certificate an entry may carry,
// in bytes; both are below 400 today.
const MaxCredential = 1024

// MaxEntrySize is the length in bytes of the largest encoded entry.
const MaxEntrySize = entryHeader + 2*MaxCredential + MaxSize

const entryHeader = 2 + 2 + 4

// Entry is what one node hands to another about a third: proof that the owner
// is a member, and the record that the owner signed.
type Entry struct {
	Credential keys.Credential
	Record     []byte
}

// ClaimedID reads the node ID off a record that nobody has verified. It is
// zero if there is none.
func (e Entry) ClaimedID() ids.NodeID {
	if len(e.Record) < len(Domain)+16 {
		return ids.NodeID{}
	}
	return ids.NodeID(e.Record[len(Domain) : len(Domain)+16])
}

// AppendEntry appends the encoding of e to b: the lengths of delegation (u16),
// certificate (u16) and record (u32), then the three.
func AppendEntry(b []byte, e Entry) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(e.Credential.Delegation)))
	b = binary.BigEndian.AppendUint16(b, uint16(len(e.Credential.Cert)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(e.Record)))
	b = append(b, e.Credential.Delegation...)
	b = append(b, e.Credential.Cert...)
	return append(b, e.Record...)
}

// EntrySize returns how many bytes AppendEntry adds for e.
func EntrySize(e Entry) int {
	return entryHeader + len(e.Credential.Delegation) + len(e.Credential.Cert) + len(e.Record)
}

// CutEntry takes one entry off the front of b and returns the rest. The
// entry's fields alias b. Nothing is verified.
func CutEntry(b []byte) (e Entry, rest []byte, err error) {
	r := newReader(b)
	del := r.Count("bytes of delegation", int(r.U16()), MaxCredential, 0)
	cert := r.Count("bytes of certificate", int(r.U16()), MaxCredential, 0)
	rec := r.Count("bytes of record", int(min(r.U32(), uint32(MaxSize)+1)), MaxSize, 0)
	e.Credential.Delegation = r.Take(del)
	e.Credential.Cert = r.Take(cert)
	e.Record = r.Take(rec)
	if r.Err() != nil {
		return Entry{}, nil, fmt.Errorf("read entry: %w", r.Err())
	}
	return e, r.Rest(), nil
}

// Head summarises an item, so that two nodes can find out in what their sets
// differ without sending them.
type Head struct {
	ID         ids.NodeID
	Seq        uint64
	Credential [32]byte // SHA-256 of the credential's encoding
	Record     [32]byte // SHA-256 of the record, signature included
}

// HeadSize is the length in bytes of an encoded head.
const HeadSize = 16 + 8 + 32 + 32

// AppendHead appends the encoding of h: ID, Seq (u64), both hashes.
func AppendHead(b []byte, h Head) []byte {
	b = append(b, h.ID[:]...)
	b = binary.BigEndian.AppendUint64(b, h.Seq)
	b = append(b, h.Credential[:]...)
	return append(b, h.Record[:]...)
}

// ParseHead reads what AppendHead wrote; b holds at least HeadSize bytes.
func ParseHead(b []byte) Head {
	_ = b[HeadSize-1]
	return Head{
		ID:         ids.NodeID(b[:16]),
		Seq:        binary.BigEndian.Uint64(b[16:24]),
		Credential: [32]byte(b[24:56]),
		Record:     [32]byte(b[56:88]),
	}
}

// Item is a verified entry. Items are immutable and shared between sets:
// nobody may write to what one points at.
type Item struct {
	Entry Entry
	Head  Head
	Cert  keys.Cert
	Node  Node

	delegated time.Time // NotBefore of the delegation, to order credentials
}

// Holds reports whether the item consists of exactly the bytes of e, which
// then need no verification.
func (it *Item) Holds(e Entry) bool {
	return bytes.Equal(it.Entry.Record, e.Record) && sameCredential(it.Entry.Credential, e.Credential)
}

// Shows reports whether the item's credential is exactly c.
func (it *Item) Shows(c keys.Credential) bool { return sameCredential(it.Entry.Credential, c) }

// Errors of verification. ErrMalformed and those of keys.Trust.VerifyMember
// (wrong cluster, signature, expired, not yet valid) are the others.
var (
	// ErrWrongOwner: the record names another node than the certificate.
	ErrWrongOwner = errors.New("record belongs to another node than its certificate")
	// ErrBadSignature: the owner did not sign these bytes.
	ErrBadSignature = errors.New("record has a bad signature")
	// ErrConflict: the owner signed two records with one sequence number.
	// The one with the lower hash is kept, everywhere.
	ErrConflict = errors.New("owner signed two records with one sequence number")
	// ErrFull: the set holds MaxMembers nodes.
	ErrFull = errors.New("record set is full")
)

// Verify checks e end to end at time now: the certificate chain up to the
// cluster's root, the record's format, that it names the certificate's node,
// and its signature. known is the item held for the node, or nil.
//
// Expiry matters only to a node not yet known. A member that is known stays
// one when its certificate runs out, and so does what it signs: a jump of the
// clock must not take a working network down, and the tool against a stolen
// key is revocation, not expiry. The data plane's own limits on expired
// members are the agent's.
func Verify(trust keys.Trust, now time.Time, e Entry, known *Item) (*Item, error) {
	it := &Item{Entry: cloneEntry(e)}
	if known != nil && sameCredential(known.Entry.Credential, e.Credential) {
		// The same bytes were verified when they came in.
		it.Cert, it.delegated = known.Cert, known.delegated
	} else if err := it.verifyCredential(trust, now, known != nil); err != nil {
		return nil, err
	}
	if err := it.verifyRecord(); err != nil {
		return nil, err
	}
	return it, nil
}

// Reverify is Verify for an entry that this node has accepted before and kept:
// neither expiry nor a clock that went back must make it forget a member. The
// chain is verified as of its own beginning.
func Reverify(trust keys.Trust, e Entry) (*Item, error) {
	it := &Item{Entry: cloneEntry(e)}
	if err := it.verifyCredential(trust, e.Credential.Begins(), false); err != nil {
		return nil, err
	}
	if err := it.verifyRecord(); err != nil {
		return nil, err
	}
	return it, nil
}

// verifyRecord checks the record against the verified certificate.
func (it *Item) verifyRecord() error {
	node, signed, err := split(it.Entry.Record)
	if err != nil {
		return fmt.Errorf("verify record of node %s: %w", it.Cert.ID(), err)
	}
	// The ID is a hash of the identity key, so this ties the record to the
	// one key that may sign it; nobody can sign for another node.
	if node.ID != it.Cert.ID() {
		return fmt.Errorf("verify record of node %s: %w", node.ID, ErrWrongOwner)
	}
	body, sig := it.Entry.Record[len(Domain):signed], [keys.SignatureSize]byte(it.Entry.Record[signed:])
	if !it.Cert.Identity.Verify(Domain, body, sig) {
		return fmt.Errorf("verify record of node %s: %w", node.ID, ErrBadSignature)
	}
	it.Node = node
	it.Head = Head{
		ID:         node.ID,
		Seq:        node.Seq,
		Credential: hashCredential(it.Entry.Credential),
		Record:     sha256.Sum256(it.Entry.Record),
	}
	return nil
}

// verifyCredential checks the chain. With expiredToo a certificate that was
// valid once is enough: the chain is then verified as of its own beginning.
func (it *Item) verifyCredential(trust keys.Trust, now time.Time, expiredToo bool) error {
	c := it.Entry.Credential
	cert, err := trust.VerifyMember(c, now)
	if expiredToo && errors.Is(err, keys.ErrExpired) {
		cert, err = trust.VerifyMember(c, beginning(c, now))
	}
	if err != nil {
		return fmt.Errorf("verify member: %w", err)
	}
	del, err := keys.ParseDelegation(c.Delegation)
	if err != nil {
		return fmt.Errorf("verify member: %w", err)
	}
	it.Cert, it.delegated = cert, del.NotBefore
	return nil
}

// beginning returns the first moment at which the whole chain of c may have
// been valid, but never one after now: the future proves nothing.
func beginning(c keys.Credential, now time.Time) time.Time {
	if t := c.Begins(); t.Before(now) {
		return t
	}
	return now
}

// hashCredential hashes delegation and certificate with their lengths, so
// that moving bytes from one to the other changes the hash.
func hashCredential(c keys.Credential) [32]byte {
	h := sha256.New()
	var n [4]byte
	binary.BigEndian.PutUint16(n[:2], uint16(len(c.Delegation)))
	binary.BigEndian.PutUint16(n[2:], uint16(len(c.Cert)))
	h.Write(n[:])
	h.Write(c.Delegation)
	h.Write(c.Cert)
	return [32]byte(h.Sum(nil))
}

func sameCredential(a, b keys.Credential) bool {
	return bytes.Equal(a.Delegation, b.Delegation) && bytes.Equal(a.Cert, b.Cert)
}

// cloneEntry keeps an item independent of the buffer that its bytes came in.
func cloneEntry(e Entry) Entry {
	return Entry{
		Credential: keys.Credential{
			Delegation: bytes.Clone(e.Credential.Delegation),
			Cert:       bytes.Clone(e.Credential.Cert),
		},
		Record: bytes.Clone(e.Record),
	}
}
