package noisenet

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/flynn/noise"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

const (
	helloSize   = 48 // message 1: ephemeral key and the tag of an empty payload
	unkeyedSize = 32 // the same without access key, where nothing is encrypted yet
	// maxHandshake bounds messages 2 and 3, so that a responder reads at most
	// 10 + 50 + 2 + 1,900 bytes, less than 2 KiB, from an unauthenticated peer.
	maxHandshake = 1900
)

var errHandshakeDead = errors.New("handshake is over")

// established is the result of a handshake: an authenticated peer (except for
// the joiner as the issuer sees it) and the secret shared with it.
type established struct {
	initiator  bool
	version    uint8
	secret     secret
	hash       [32]byte // handshake hash: names this handshake and nothing else
	cert       keys.Cert
	credential keys.Credential
	port       uint16
	boot       uint64
	token      keys.TokenID // join handshakes only
}

// hybrid reports that the secret depends on ML-KEM, too.
func (e *established) hybrid() bool { return e.version >= versionHybrid }

// handshake runs one side of Noise_XXpsk0_25519_ChaChaPoly_BLAKE2s between
// members, and in version 2 the hybrid step after it. It does no I/O and reads
// no clock: step takes messages without and returns them with their u16 length.
//
//	initiator 1: newInitiatorWith -> m1; step(m2) -> m3 and the result
//	responder 1: step(m1) -> m2; step(m3) -> the result
//	initiator 2: newInitiatorWith -> m1; step(m2) -> m3, m4; step(m5) -> the result
//	responder 2: step(m1) -> m2; step(m3) -> nothing; step(m4) -> m5 and the result
//
// Any error kills it: later calls return errHandshakeDead, because flynn/noise
// leaves its key state changed when a message fails. There is one goroutine
// per handshake.
type handshake struct {
	party     *party
	initiator bool
	version   uint8
	offered   header
	expect    ids.NodeID // zero: whoever answers
	access    accessEntry
	noise     *noise.HandshakeState
	private   []byte  // copy of the static key, cleared at the end
	messages  int     // written and read so far
	hybrid    *hybrid // after message 3 of version 2
	over      bool
}

// newInitiatorWith begins a handshake with the node expect, or with whoever
// answers if it is zero, under one of the access keys or none. The returned bytes
// are header and message 1.
func newInitiatorWith(p *party, expect ids.NodeID, access accessEntry) (*handshake, []byte, error) {
	least, err := p.least()
	if err != nil {
		return nil, nil, fmt.Errorf("begin handshake: %w", err)
	}
	h := &handshake{party: p, initiator: true, expect: expect, access: access,
		offered: header{min: least, max: p.versionMax, kind: streamMember, keyID: access.id}}
	if err := h.begin(); err != nil {
		return nil, nil, err
	}
	m1, _, _, err := h.noise.WriteMessage(nil, nil)
	if err != nil {
		h.kill()
		return nil, nil, fmt.Errorf("write handshake message 1: %w", err)
	}
	h.messages++
	first := h.offered.encode()
	return h, append(first[:], frameHandshake(m1)...), nil
}

// newResponder answers a stream that began with offered. It refuses other
// clusters' key IDs before any cryptography.
func newResponder(p *party, offered header) (*handshake, error) {
	if offered.kind != streamMember {
		return nil, fmt.Errorf("answer handshake: stream of kind %d: %w", offered.kind, ErrHandshake)
	}
	access, err := p.entry(offered.keyID)
	if err != nil {
		return nil, err
	}
	least, err := p.least()
	if err != nil {
		return nil, fmt.Errorf("answer handshake: %w", err)
	}
	if offered.max < least {
		return nil, fmt.Errorf("answer handshake: peer speaks version %d to %d: %w", offered.min, offered.max, ErrFloor)
	}
	version, err := offered.chooseVersion(least, p.versionMax)
	if err != nil {
		return nil, err
	}
	if p.hybridOnly && version < versionHybrid {
		return nil, fmt.Errorf("answer handshake: peer speaks version %d to %d: %w", offered.min, offered.max, ErrNotHybrid)
	}
	h := &handshake{party: p, offered: offered, version: version, access: access}
	return h, h.begin()
}

func (h *handshake) begin() error {
	h.private = exposeCopy(h.party.static.Expose)
	var psk []byte
	if h.keyed() {
		psk = exposeCopy(h.access.key.Expose)
	}
	defer clear(psk)
	// flynn/noise takes an empty psk for "no psk" and would then speak plain
	// XX, which any stranger can begin: only where the header says so.
	if h.keyed() && len(psk) != 32 || len(h.private) != 32 {
		return fmt.Errorf("begin handshake: node has no access key or no Noise key")
	}
	var err error
	h.noise, err = noise.NewHandshakeState(noise.Config{
		CipherSuite:           suite(),
		Random:                h.party.random,
		Pattern:               noise.HandshakeXX,
		Initiator:             h.initiator,
		Prologue:              h.offered.prologue(h.party.trust.Cluster),
		PresharedKey:          psk,
		PresharedKeyPlacement: 0,
		StaticKeypair:         noise.DHKey{Private: h.private, Public: h.party.public[:]},
	})
	if err != nil {
		h.kill()
		return fmt.Errorf("begin handshake: %w", err)
	}
	return nil
}

// keyed reports whether the handshake runs under an access key. The header says
// it, and is in the prologue, so both sides mean the same.
func (h *handshake) keyed() bool { return !h.access.none }

// helloSize is the length of message 1.
func (h *handshake) helloSize() int {
	if h.keyed() {
		return helloSize
	}
	return unkeyedSize
}

// step takes the peer's next message without its length prefix. out, if not
// nil, must be sent; done, if not nil, ends the handshake.
func (h *handshake) step(now time.Time, msg []byte) (out []byte, done *established, err error) {
	if h.over {
		return nil, nil, errHandshakeDead
	}
	switch {
	case !h.initiator && h.messages == 0:
		out, err = h.answer(msg)
	case h.initiator && h.messages == 1:
		out, done, err = h.finishInitiator(now, msg)
	case !h.initiator && h.messages == 2:
		done, err = h.finishResponder(now, msg)
	case !h.initiator && h.messages == 3:
		out, done, err = h.answerHybrid(msg)
	case h.initiator && h.messages == 4:
		done, err = h.finishHybrid(msg)
	default:
		err = errHandshakeDead
	}
	if err != nil || done != nil {
		h.kill()
	}
	return out, done, err
}

// want returns the bounds of the length of the peer's next message.
func (h *handshake) want() (least, most int) {
	switch {
	case !h.initiator && h.messages == 0:
		return h.helloSize(), h.helloSize()
	case !h.initiator && h.messages == 3:
		return hybridOffer, hybridOffer
	case h.initiator && h.messages == 4:
		return hybridAnswer, hybridAnswer
	}
	return helloSize, maxHandshake
}

func (h *handshake) answer(m1 []byte) ([]byte, error) {
	// A stranger without the access key fails here, at one AEAD check, before
	// any Diffie-Hellman: XXpsk0's first message is tokens psk, e.
	if _, _, _, err := h.noise.ReadMessage(nil, m1); err != nil {
		return nil, fmt.Errorf("read handshake message 1: %w: %w", ErrHandshake, err)
	}
	m2, _, _, err := h.noise.WriteMessage(nil, h.payload().encode())
	if err != nil {
		return nil, fmt.Errorf("write handshake message 2: %w", err)
	}
	h.messages = 2
	return frameHandshake(m2), nil
}

func (h *handshake) finishInitiator(now time.Time, m2 []byte) ([]byte, *established, error) {
	raw, _, _, err := h.noise.ReadMessage(nil, m2)
	if err != nil {
		return nil, nil, fmt.Errorf("read handshake message 2: %w: %w", ErrHandshake, err)
	}
	// The responder is checked in full before message 3 tells it who we are.
	peer, err := h.checkPeer(now, raw)
	if err != nil {
		return nil, nil, err
	}
	if peer.version < h.offered.min || peer.version > h.offered.max {
		return nil, nil, fmt.Errorf("check handshake: peer chose version %d: %w", peer.version, ErrVersion)
	}
	// Refused before message 3, too. The version is authenticated: the range
	// offered is in the prologue, the choice inside message 2.
	if h.party.hybridOnly && !peer.hybrid() {
		return nil, nil, fmt.Errorf("check peer %s: it chose version %d: %w", peer.cert.ID(), peer.version, ErrNotHybrid)
	}
	h.version = peer.version
	m3, i2r, r2i, err := h.noise.WriteMessage(nil, h.payload().encode())
	if err != nil {
		return nil, nil, fmt.Errorf("write handshake message 3: %w", err)
	}
	h.messages = 3
	out := frameHandshake(m3)
	if done := h.establish(peer, i2r, r2i); done != nil {
		return out, done, nil
	}
	m4, err := h.hybrid.offer(h.party.kem)
	if err != nil {
		return nil, nil, fmt.Errorf("write handshake message 4: %w", err)
	}
	h.messages = 4
	return append(out, m4...), nil, nil
}

func (h *handshake) finishResponder(now time.Time, m3 []byte) (*established, error) {
	raw, i2r, r2i, err := h.noise.ReadMessage(nil, m3)
	if err != nil {
		return nil, fmt.Errorf("read handshake message 3: %w: %w", ErrHandshake, err)
	}
	peer, err := h.checkPeer(now, raw)
	if err != nil {
		return nil, err
	}
	if peer.version != h.version {
		return nil, fmt.Errorf("check handshake: peer confirms version %d instead of %d: %w", peer.version, h.version, ErrVersion)
	}
	h.messages = 3
	return h.establish(peer, i2r, r2i), nil
}

// checkPeer decides whether the other side is a member. Noise proved only that
// it holds the private half of its static key; the certificate ties that key to
// an identity, and the chain ties the identity to the cluster's root.
func (h *handshake) checkPeer(now time.Time, raw []byte) (*established, error) {
	p, err := parsePayload(raw)
	if err != nil {
		return nil, err
	}
	e, err := verifyPeer(h.party.trust, h.party.at(now, p.credential), p, h.noise.PeerStatic())
	if err != nil {
		return nil, err
	}
	id := e.cert.ID()
	switch {
	case id == h.party.node:
		return nil, fmt.Errorf("check peer: %w", ErrSelf)
	case !h.expect.IsZero() && id != h.expect:
		return nil, fmt.Errorf("check peer: have %s, want %s: %w", id, h.expect, ErrWrongPeer)
	case h.party.refuse != nil && h.party.refuse(e.cert, e.credential):
		return nil, fmt.Errorf("check peer %s: %w", id, ErrRefused)
	}
	return e, nil
}

func verifyPeer(trust keys.Trust, now time.Time, p payload, static []byte) (*established, error) {
	cert, err := trust.VerifyMember(p.credential, now)
	if err != nil {
		return nil, fmt.Errorf("check peer's credential: %w", err)
	}
	// Without this a member could present another member's certificate, which
	// is no secret, over a Noise key of its own.
	if string(cert.Noise[:]) != string(static) {
		return nil, fmt.Errorf("check peer %s: certificate is for another Noise key: %w", cert.ID(), ErrHandshake)
	}
	return &established{version: p.version, cert: cert, credential: p.credential, port: p.port, boot: p.boot}, nil
}

func (h *handshake) payload() payload {
	return payload{version: h.version, port: h.party.port, boot: h.party.boot, credential: h.party.shown()}
}

// establish ends the Noise part with an authenticated peer. In version 2 it
// returns nil and leaves the rest to the hybrid step.
func (h *handshake) establish(e *established, i2r, r2i *noise.CipherState) *established {
	e.initiator = h.initiator
	copy(e.hash[:], h.noise.ChannelBinding())
	if e.hybrid() {
		h.hybrid = newHybrid(e, i2r, r2i)
		return nil
	}
	e.secret = splitSecret(e.hash[:], i2r, r2i)
	return e
}

// answerHybrid takes message 4 and ends the responder's side.
func (h *handshake) answerHybrid(m4 []byte) ([]byte, *established, error) {
	m5, done, err := h.hybrid.answer(h.party.kem, m4)
	if err != nil {
		return nil, nil, fmt.Errorf("answer handshake message 4 of %s: %w", h.hybrid.peer.cert.ID(), err)
	}
	h.messages = 5
	return m5, done, nil
}

// finishHybrid takes message 5 and ends the initiator's side.
func (h *handshake) finishHybrid(m5 []byte) (*established, error) {
	done, err := h.hybrid.finish(m5)
	if err != nil {
		return nil, fmt.Errorf("read handshake message 5 of %s: %w", h.hybrid.peer.cert.ID(), err)
	}
	h.messages = 5
	return done, nil
}

// splitSecret feeds both keys of Noise's Split into the key schedule; the
// CipherStates themselves are never used to encrypt.
func splitSecret(hash []byte, i2r, r2i *noise.CipherState) secret {
	a, b := i2r.UnsafeKey(), r2i.UnsafeKey()
	defer clear(a[:])
	defer clear(b[:])
	return sessionSecret(hash, labelSession, a[:], b[:])
}

// kill forgets every secret that the handshake holds. It may be called again.
func (h *handshake) kill() {
	h.over = true
	clear(h.private)
	h.noise = nil
	if h.hybrid != nil {
		h.hybrid.forget()
	}
}

func suite() noise.CipherSuite {
	return noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashBLAKE2s)
}

func exposeCopy(expose func(func([]byte))) (out []byte) {
	expose(func(raw []byte) { out = append(out, raw...) })
	return out
}

// frameHandshake puts the u16 length before a handshake message.
func frameHandshake(msg []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)
}
