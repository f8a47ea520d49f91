package noisenet

import (
	"fmt"
	"io"
	"time"

	"github.com/flynn/noise"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// maxJoinCandidates bounds how many tokens with the same low 32 bits an issuer
// tries, each costing one hash chain and one AEAD check. Two among a thousand
// tokens collide with probability 0.01 %.
const maxJoinCandidates = 4

// joinHandshake is the newcomer's side of
// Noise_NXpsk0_25519_ChaChaPoly_BLAKE2s, with the token's key as psk. Like
// handshake it does no I/O, and any error kills it.
//
// Who proves what: the issuer proves with its certificate, whose chain ends at
// the root key in the token, that it is a member, and that it knows the token's
// key. It is the issuer of this token if nobody else has it: of a token of many
// uses any member that it has admitted can answer in the issuer's place
// (SECURITY.md; test/model, join-insider). The newcomer has no static key here; it proves its identity afterwards by a signature over the handshake
// hash (keys.JoinRequest).
type joinHandshake struct {
	trust   keys.Trust
	offered header
	token   keys.TokenID
	noise   *noise.HandshakeState
}

// newJoiner returns the handshake and the bytes of header and message 1.
func newJoiner(token keys.Token, random io.Reader) (*joinHandshake, []byte, error) {
	j := &joinHandshake{
		trust:   keys.Trust{Cluster: token.Cluster, Root: token.Root},
		offered: header{min: versionMin, max: versionMaxJoin, kind: streamJoin, keyID: token.ID.Low32()},
		token:   token.ID,
	}
	var err error
	j.noise, err = joinState(j.offered, token.Cluster, token.Secret.JoinKey(), true, noise.DHKey{}, random)
	if err != nil {
		return nil, nil, err
	}
	m1, _, _, err := j.noise.WriteMessage(nil, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("write join message 1: %w", err)
	}
	first := j.offered.encode()
	return j, append(first[:], frameHandshake(m1)...), nil
}

// finish takes the issuer's message 2 without its length prefix.
func (j *joinHandshake) finish(now time.Time, m2 []byte) (*established, error) {
	if j.noise == nil {
		return nil, errHandshakeDead
	}
	state := j.noise
	j.noise = nil
	raw, i2r, r2i, err := state.ReadMessage(nil, m2)
	if err != nil {
		return nil, fmt.Errorf("read join message 2: %w: %w", ErrHandshake, err)
	}
	p, err := parsePayload(raw)
	if err != nil {
		return nil, err
	}
	e, err := verifyPeer(j.trust, now, p, state.PeerStatic())
	if err != nil {
		return nil, err
	}
	if e.version < j.offered.min || e.version > j.offered.max {
		return nil, fmt.Errorf("check join: issuer chose version %d: %w", e.version, ErrVersion)
	}
	e.initiator, e.token = true, j.token
	copy(e.hash[:], state.ChannelBinding())
	e.secret = splitSecret(e.hash[:], i2r, r2i)
	return e, nil
}

// answerJoin is the issuer's side: it takes message 1, finds the token whose
// key opens it, and returns message 2 with the result. It keeps no state.
func answerJoin(p *party, offered header, candidates []JoinKey, m1 []byte) ([]byte, *established, error) {
	version, err := offered.chooseVersion(versionMin, versionMaxJoin)
	if err != nil {
		return nil, nil, err
	}
	if len(candidates) == 0 {
		return nil, nil, fmt.Errorf("answer join %08x: %w", offered.keyID, ErrTokenUnknown)
	}
	private := exposeCopy(p.static.Expose)
	defer clear(private)
	static := noise.DHKey{Private: private, Public: p.public[:]}
	for _, c := range candidates[:min(len(candidates), maxJoinCandidates)] {
		state, err := joinState(offered, p.trust.Cluster, c.Key, false, static, p.random)
		if err != nil {
			return nil, nil, err
		}
		if _, _, _, err := state.ReadMessage(nil, m1); err != nil {
			continue
		}
		own := payload{version: version, port: p.port, boot: p.boot, credential: p.shown()}
		m2, i2r, r2i, err := state.WriteMessage(nil, own.encode())
		if err != nil {
			return nil, nil, fmt.Errorf("write join message 2: %w", err)
		}
		e := &established{version: version, token: c.ID}
		copy(e.hash[:], state.ChannelBinding())
		e.secret = splitSecret(e.hash[:], i2r, r2i)
		return frameHandshake(m2), e, nil
	}
	return nil, nil, fmt.Errorf("answer join %08x: no token's key opens it: %w", offered.keyID, ErrHandshake)
}

func joinState(h header, c ids.ClusterID, key keys.AccessKey, initiator bool, static noise.DHKey, random io.Reader) (*noise.HandshakeState, error) {
	psk := exposeCopy(key.Expose)
	defer clear(psk)
	// An empty psk would silently give plain NX: see handshake.begin.
	if len(psk) != 32 {
		return nil, fmt.Errorf("begin join: token has no key")
	}
	state, err := noise.NewHandshakeState(noise.Config{
		CipherSuite:           suite(),
		Random:                random,
		Pattern:               noise.HandshakeNX,
		Initiator:             initiator,
		Prologue:              h.prologue(c),
		PresharedKey:          psk,
		PresharedKeyPlacement: 0,
		StaticKeypair:         static,
	})
	if err != nil {
		return nil, fmt.Errorf("begin join: %w", err)
	}
	return state, nil
}
