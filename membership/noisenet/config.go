package noisenet

import (
	"cmp"
	"context"
	"crypto/rand"
	"io"
	"log/slog"
	"net/netip"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
)

// VirtualPort is the port of every virtual address that memberlist sees. It
// has no relation to the port on the underlay.
const VirtualPort = 7946

// PacketSize is for memberlist's UDPBufferSize: 1,200 bytes of UDP payload,
// which fits IPv6's minimum link of 1,280, minus header and tag, minus the CRC
// that memberlist adds after it has filled a packet.
const PacketSize = maxPacket - crcHeader

// MaxMessage is the largest control request or response, and the most bytes
// one memberlist stream may carry in each direction: 4 MiB.
const MaxMessage = 4 << 20

// Config says who a node is and whom it may talk to.
type Config struct {
	Node       ids.NodeID        // this node; also its memberlist name
	Trust      keys.Trust        // the cluster and its root key
	Noise      keys.NoisePrivate // static key, the one in Credential's certificate
	Credential keys.Credential   // shown to peers
	Access     keys.AccessKey    // cluster access key, the psk of member handshakes
	Bind       netip.AddrPort    // TCP and UDP; port 0 lets the kernel choose one for both
	Directory  Directory         // where members are; must not block
	Admission  Admission         // nil: join requests are refused
	Handler    Handler           // nil: control requests are answered with an error
	Agree      AgreeHandler      // nil: tunnel secrets are refused
	// Refuse is asked about each peer that has proved its identity, before it
	// gets anything, with the certificate and the credential that it showed.
	// Revoked nodes are refused here. Nil refuses nobody. It must not block.
	Refuse func(keys.Cert, keys.Credential) bool
	// Clock says with which time peers are verified. Nil: the system clock.
	Clock Clock
	// RequireHybrid refuses peers that speak version 1 only, with ErrNotHybrid;
	// the setting crypto.require_pq. Joins are not concerned.
	RequireHybrid bool
	// Floor is the lowest version of member streams that the cluster allows; it
	// is asked anew for each handshake. Streams that are open below it go on
	// until Drop. Nil: any. It must not block.
	Floor func() uint8
	Log   *slog.Logger // nil: discarded

	// limits, random and versionMax (0: all) are for tests of this package.
	limits     limits
	random     io.Reader
	versionMax uint8
}

// Clock is what the transport asks of a *clock.Clock. It must not block.
type Clock interface {
	// For returns the time with which to verify what begins at a time.
	For(begins time.Time) time.Time
}

// Directory knows the underlay addresses of members from their signed records.
// The transport adds addresses it has itself seen in authenticated handshakes.
type Directory interface {
	Underlay(ids.NodeID) []netip.AddrPort
}

// JoinKey is one token that an issuer still knows: its ID and the handshake
// key derived from its secret.
type JoinKey = keystore.JoinKey

// Admission decides about newcomers. JoinKeys returns the tokens whose ID ends
// in low32, including used, expired and revoked ones as long as they are known,
// so that their holders get a reason. Issue returns one of the ErrToken...
// (wrapped or not) when it refuses; another error becomes a refusal without
// detail.
type Admission interface {
	JoinKeys(low32 uint32) []JoinKey
	Issue(ctx context.Context, from netip.AddrPort, id keys.TokenID, req keys.JoinRequest) (keys.JoinAnswer, error)
}

// Handler answers one control request of at most MaxMessage bytes with a
// response of at most MaxMessage bytes. It runs in its own goroutine; ctx ends
// with the stream. A request may arrive twice, because Call repeats it once
// when a stream breaks: handlers must be idempotent. The text of an error
// reaches the caller.
type Handler func(ctx context.Context, from Peer, req []byte) ([]byte, error)

// Peer is a node that has proved its identity in a handshake.
type Peer struct {
	ID         ids.NodeID
	Cert       keys.Cert
	Credential keys.Credential
	Addr       netip.AddrPort // underlay address: as dialled, or source IP with the announced port
	Version    uint8          // of the protocol, that the stream has
	// Hybrid: the secrets of the stream hold if either X25519 or ML-KEM-768
	// does (version 2).
	Hybrid bool
}

// limits are the numbers that tests turn down or up; withDefaults fills zeros.
type limits struct {
	unauthenticated int           // connections in a handshake, whole node
	perSource       int           // connections in a handshake, per source prefix
	handshake       time.Duration // from accept to the first frame
	bucketRate      float64       // handshakes per second and source
	bucketBurst     int
	bucketWait      time.Duration // how long a connection may wait for its turn
	controlIdle     time.Duration // the dialler closes an unused control stream
	hintQuiet       time.Duration // a HINT counts only after this silence
	hintDial        time.Duration // and this long after the last dial
	streamsPerPeer  int           // accepted streams of one peer
	agree           time.Duration // from the first frame of an agreement to its answer
}

func (l limits) withDefaults() limits {
	return limits{
		unauthenticated: cmp.Or(l.unauthenticated, 128),
		perSource:       cmp.Or(l.perSource, 16),
		handshake:       cmp.Or(l.handshake, 5*time.Second),
		bucketRate:      cmp.Or(l.bucketRate, 20),
		bucketBurst:     cmp.Or(l.bucketBurst, 5),
		bucketWait:      cmp.Or(l.bucketWait, time.Second),
		controlIdle:     cmp.Or(l.controlIdle, time.Minute),
		hintQuiet:       cmp.Or(l.hintQuiet, 3*time.Second),
		hintDial:        cmp.Or(l.hintDial, 5*time.Second),
		streamsPerPeer:  cmp.Or(l.streamsPerPeer, 16),
		agree:           cmp.Or(l.agree, 10*time.Second),
	}
}

func (c Config) withDefaults() Config {
	c.limits = c.limits.withDefaults()
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.random == nil {
		c.random = rand.Reader
	}
	c.versionMax = cmp.Or(c.versionMax, versionMax)
	return c
}
