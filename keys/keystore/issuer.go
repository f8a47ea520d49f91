package keystore

import (
	"errors"
	"net/netip"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// Why a join is refused.
var (
	ErrTokenUnknown = errors.New("join token is unknown to this issuer")
	ErrTokenExpired = errors.New("join token has expired")
	ErrTokenRevoked = errors.New("join token was revoked")
	ErrTokenUsed    = errors.New("join token has been used")
)

// Lifetimes that Init and CreateToken use.
const (
	CertLifetime       = 30 * 24 * time.Hour
	MaxCertLifetime    = 90 * 24 * time.Hour
	DelegationLifetime = 10 * 365 * 24 * time.Hour
	TokenTTL           = time.Hour
	MaxTokenTTL        = 30 * 24 * time.Hour

	// RepeatWindow is how long the identity that used a token may ask again
	// and get the same certificate, for the case that the answer was lost.
	RepeatWindow = 10 * time.Minute
)

// TokenState is what may still be done with a token.
type TokenState string

// The states of a token.
const (
	TokenPending TokenState = "pending"
	TokenUsed    TokenState = "used"
	TokenExpired TokenState = "expired"
	TokenRevoked TokenState = "revoked"
)

// TokenInfo is what the issuer knows of a token. It holds no secret.
type TokenInfo struct {
	ID      keys.TokenID
	State   TokenState
	Created time.Time
	Expires time.Time

	// Set when used.
	UsedBy   ids.NodeID
	Hostname string
	UsedAt   time.Time
	Serial   uint64
}

// JoinKey is a candidate for the preshared key of a join handshake.
type JoinKey struct {
	ID  keys.TokenID
	Key keys.AccessKey
}

// Issuer admits nodes. Its methods may be called from any goroutine; they
// wait for each other.
type Issuer struct{}

// CreateToken makes a single-use token that is valid for ttl (0: TokenTTL) and
// persists what checking it needs, which is not its secret: the returned
// Token is the only copy of that.
func (i *Issuer) CreateToken(ttl time.Duration, seeds []netip.AddrPort, now time.Time) (keys.Token, TokenInfo, error) {
	return keys.Token{}, TokenInfo{}, errUnfinished
}

// Tokens lists the tokens, oldest first. Used, expired and revoked ones stay
// listed for a day.
func (i *Issuer) Tokens(now time.Time) []TokenInfo { return nil }

// RevokeToken makes a pending token useless. ErrTokenUsed if a node was
// admitted by it: then it is the node that must be revoked.
func (i *Issuer) RevokeToken(id keys.TokenID) error { return errUnfinished }

// JoinKeys returns the preshared keys of the tokens with this key-ID, also of
// used and expired ones, so that their holders learn from Issue why they are
// refused. The keys share memory with the Store: do not Wipe them.
func (i *Issuer) JoinKeys(low32 uint32) []JoinKey { return nil }

// Issue admits the node of req by the token id. The caller has verified
// req's proof (keys.JoinRequest.VerifyProof).
func (i *Issuer) Issue(now time.Time, id keys.TokenID, req keys.JoinRequest) (keys.JoinAnswer, error) {
	return keys.JoinAnswer{}, errUnfinished
}
