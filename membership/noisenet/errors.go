package noisenet

import (
	"errors"
	"fmt"

	"github.com/secure-overlay/secure-overlay/keys/keystore"
)

// Reasons an issuer gives for refusing a join, the same values that the issuer's
// store uses. Admission returns them and Join returns them to the newcomer.
var (
	ErrTokenUsed    = keystore.ErrTokenUsed
	ErrTokenExpired = keystore.ErrTokenExpired
	ErrTokenUnknown = keystore.ErrTokenUnknown
	ErrTokenRevoked = keystore.ErrTokenRevoked

	ErrTokenHostname = keystore.ErrTokenHostname
	ErrTokenSource   = keystore.ErrTokenSource
	// ErrTokenWaiting: ask again.
	ErrTokenWaiting = keystore.ErrTokenWaiting
	ErrTokenDenied  = keystore.ErrTokenDenied
	// ErrJoinRefused is every other refusal; the issuer's log has the reason.
	ErrJoinRefused = errors.New("issuer refused the join request")
)

// Errors of the transport.
var (
	// ErrSelf: the address leads back to this node.
	ErrSelf = errors.New("peer is this node itself")
	// ErrWrongPeer: another node than the expected one answered.
	ErrWrongPeer = errors.New("another node answered at this address")
	// ErrRefused: Config.Refuse refused the peer, or Drop closed its streams.
	ErrRefused = errors.New("peer is refused")
	// ErrUnreachable: no address is known or none answered.
	ErrUnreachable = errors.New("peer is unreachable")
	// ErrClosed: the transport has been shut down.
	ErrClosed = errors.New("transport is closed")
	// ErrTooLarge: a message exceeds MaxMessage or MaxAgree, or a packet its
	// 1,168 bytes.
	ErrTooLarge = errors.New("message is too large")
	// ErrHandshake: the peer broke off or broke the rules of a handshake.
	ErrHandshake = errors.New("handshake failed")
	// ErrTurnedAway: the peer broke off when it had seen who this node is: it
	// refuses it, or its process ended just then. It is an ErrHandshake, too.
	ErrTurnedAway = errors.New("peer turned this node away")
	// ErrNoIssuer: who answered a join knows the token, and is a member, but no
	// issuer. It is an ErrHandshake, too.
	ErrNoIssuer = errors.New("node that answers the join is no issuer")
	// ErrVersion: no protocol version in common.
	ErrVersion = errors.New("no common protocol version")
	// ErrFloor: this node, or the peer, speaks no protocol version that
	// Config.Floor allows.
	ErrFloor = errors.New("protocol version is below the cluster's floor")
	// ErrNotHybrid: Config.RequireHybrid is set and the peer speaks version 1
	// only, whose secrets fall with X25519.
	ErrNotHybrid = errors.New("peer has no post-quantum key agreement (protocol version 2), which crypto.require_pq asks for")
	// ErrNotVirtual: an address given by memberlist is not the one that
	// belongs to the node's name.
	ErrNotVirtual = errors.New("address is not the virtual address of a node")
)

// RemoteError is what a peer's Handler or AgreeHandler answered instead of a
// response.
type RemoteError struct{ Text string }

// Error implements error.
func (e *RemoteError) Error() string { return fmt.Sprintf("peer answered: %q", e.Text) }
