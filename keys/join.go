package keys

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Limits of the join messages.
const (
	// MaxAnswerSeeds is the greatest number of addresses in a JoinAnswer.
	MaxAnswerSeeds = 5
	// HandshakeHashSize is the length of the Noise handshake hash that a join
	// proof covers (BLAKE2s).
	HandshakeHashSize = 32
)

// JoinRequest is what a joiner sends inside the join handshake: the keys to
// be certified and the proof that it holds the identity key.
type JoinRequest struct {
	Identity IdentityPublic
	Noise    NoisePublic
	Hostname string
	Proof    [SignatureSize]byte // see Prove
}

// Prove fills Identity and Proof. The proof is the identity key's signature
// of "so-csr-v1" || handshake hash (32) || identity (32) || Noise key (32) ||
// hostname (1+n): the hash binds it to this one handshake, so it cannot be
// replayed in another, and the fields bind the keys to each other.
func (r *JoinRequest) Prove(node NodePrivate, handshake [HandshakeHashSize]byte) {
	r.Identity = node.Public()
	r.Proof = node.Sign(domainJoinRequest, append(handshake[:], r.fields()...))
}

// VerifyProof reports whether Proof was made by Identity's private key for
// this handshake and these fields. Whoever receives a request calls it before
// Issuer.Issue, which cannot know the handshake.
func (r JoinRequest) VerifyProof(handshake [HandshakeHashSize]byte) error {
	if !r.Identity.Verify(domainJoinRequest, append(handshake[:], r.fields()...), r.Proof) {
		return fmt.Errorf("join request: proof of the identity key: %w", ErrBadSignature)
	}
	return nil
}

// Validate reports the first field that has no canonical form. It does not
// check the proof.
func (r JoinRequest) Validate() error {
	if smallOrder(r.Identity) {
		return errors.New("join request: identity key is of small order")
	}
	if r.Noise.IsZero() {
		return errors.New("join request: no Noise key")
	}
	if err := ValidHostname(r.Hostname); err != nil {
		return fmt.Errorf("join request: %w", err)
	}
	return nil
}

func (r JoinRequest) fields() []byte {
	b := make([]byte, 0, 32+32+1+maxHostname+SignatureSize)
	b = append(b, r.Identity[:]...)
	b = append(b, r.Noise[:]...)
	return appendHostname(b, r.Hostname)
}

// Encode returns the bytes (PROTOCOL.md), or nil where Validate gives an error.
func (r JoinRequest) Encode() []byte {
	if r.Validate() != nil {
		return nil
	}
	return append(signedBytes(domainJoinRequest, r.fields()), r.Proof[:]...)
}

// ParseJoinRequest decodes raw. The proof is not checked: see VerifyProof.
func ParseJoinRequest(raw []byte) (JoinRequest, error) {
	p := reader{what: "join request", b: raw}
	var r JoinRequest
	p.domain(domainJoinRequest)
	r.Identity = p.key("identity key")
	r.Noise = p.key("Noise key")
	r.Hostname = p.hostname()
	r.Proof = p.signature()
	if err := p.done(); err != nil {
		return JoinRequest{}, err
	}
	if err := r.Validate(); err != nil {
		return JoinRequest{}, fmt.Errorf("parse %w: %w", err, ErrMalformed)
	}
	return r, nil
}

// JoinAnswer is what the issuer answers: the new member's credential, the
// cluster access key, and addresses of members. It is not signed; it travels
// inside the join handshake, in which the issuer has proved itself.
type JoinAnswer struct {
	Credential Credential
	Access     AccessKey
	Seeds      []netip.AddrPort // at most MaxAnswerSeeds
}

// Validate reports the first field that has no canonical form. It does not
// check the credential's signatures.
func (a JoinAnswer) Validate() error {
	if _, err := ParseDelegation(a.Credential.Delegation); err != nil {
		return fmt.Errorf("join answer: %w", err)
	}
	if _, err := ParseCert(a.Credential.Cert); err != nil {
		return fmt.Errorf("join answer: %w", err)
	}
	if a.Access.IsZero() {
		return errors.New("join answer: no access key")
	}
	if err := validSeeds(a.Seeds, MaxAnswerSeeds); err != nil {
		return fmt.Errorf("join answer: %w", err)
	}
	return nil
}

// Encode returns the bytes (PROTOCOL.md), or nil where Validate gives an error.
// They hold the cluster access key: the caller sends them encrypted only and
// clears them.
func (a JoinAnswer) Encode() []byte {
	if a.Validate() != nil {
		return nil
	}
	b := []byte(domainJoinAnswer)
	for _, part := range [][]byte{a.Credential.Delegation, a.Credential.Cert} {
		b = binary.BigEndian.AppendUint16(b, uint16(len(part)))
		b = append(b, part...)
	}
	a.Access.Expose(func(raw []byte) { b = append(b, raw...) })
	return appendSeeds(b, a.Seeds)
}

// ParseJoinAnswer decodes raw, which the caller clears. The credential's
// signatures are not checked: see Trust.VerifyMember.
func ParseJoinAnswer(raw []byte) (JoinAnswer, error) {
	p := reader{what: "join answer", b: raw}
	var a JoinAnswer
	p.domain(domainJoinAnswer)
	a.Credential.Delegation = p.object("delegation", delegationSize)
	a.Credential.Cert = p.object("certificate", maxCertSize)
	access := p.take(secretSize, "access key")
	a.Seeds = p.addrPorts(MaxAnswerSeeds)
	if err := p.done(); err != nil {
		return JoinAnswer{}, err
	}
	key, err := AccessKeyFromRaw32(access)
	if err != nil {
		return JoinAnswer{}, fmt.Errorf("parse join answer: access key: %w", ErrMalformed)
	}
	a.Access = key
	if err := a.Validate(); err != nil {
		return JoinAnswer{}, fmt.Errorf("parse %w: %w", err, ErrMalformed)
	}
	return a, nil
}

// object reads a u16 length of at most limit and that many bytes, copied, so
// that clearing the message leaves the result alone.
func (r *reader) object(field string, limit int) []byte {
	n := int(r.u16(field))
	if n > limit {
		r.fail(field)
	}
	if r.err != nil {
		return nil
	}
	return append([]byte(nil), r.take(n, field)...)
}
