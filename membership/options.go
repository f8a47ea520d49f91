package membership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/clock"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// Options says who the node is and how it meets the others. Only Identity and
// NextSeq are required.
type Options struct {
	Identity keystore.Identity

	Bind      netip.AddrPort   // control address, TCP and UDP
	Advertise []netip.AddrPort // fills the Underlay of a published record that names none
	Seeds     []netip.AddrPort // addresses of members to meet first, this node's own do no harm
	Profile   string           // "lan" (default), "wan" or "local"
	// Resolve gives the seeds as they are now, for those that are host names.
	// It is called again and again while this node is alone, may block, and
	// may return what it returned before. Nil: Seeds are all there are.
	Resolve func(context.Context) []netip.AddrPort

	// Clock says what time it is where that decides whom this node believes and
	// what it dates. Nil: the system clock.
	Clock Clock

	// RequireHybrid refuses every peer whose handshake is not hybrid
	// (X25519 and ML-KEM-768).
	RequireHybrid bool

	Admission noisenet.Admission // nil: this node admits nobody
	Renewal   Renewer            // nil: this node renews nobody's certificate
	// Serials hears, before Admission is asked, of the highest serial number
	// that is known in the cluster: another issuer may have given it out. Nil:
	// there is no other.
	Serials interface{ RaiseSerial(above uint64) }
	// Keys keeps the cluster access key, *keystore.Store. Nil: the one of
	// Identity is used for ever.
	Keys AccessKeeper
	// Adopt keeps a renewed credential, which has been verified, for the next
	// start. Nil: this node's certificate is not renewed.
	Adopt func(keys.Credential) error

	// DropIssuer takes this node's issuer key away, durably. It is called when the
	// root has revoked it, before another issuer is asked for a certificate. Nil:
	// the key is only not used.
	DropIssuer func() error

	// Signer signs cluster items, *keystore.Issuer. Nil: this node signs none,
	// and asks others.
	Signer item.Signer
	// RotateInterval is the least time from one target epoch to the next that
	// this node signs; 0: DefaultRotateInterval.
	RotateInterval time.Duration

	// Pair answers a message of a member, at most MaxPair bytes, with one of at
	// most MaxPair bytes, soon. It runs in a goroutine of its own and may be
	// called twice for one message. The peer learns that it failed, not why.
	// Nil: such messages are refused.
	Pair func(ctx context.Context, from ids.NodeID, msg []byte) ([]byte, error)
	// Claim is the same for messages of at most MaxClaim bytes.
	Claim func(ctx context.Context, from ids.NodeID, msg []byte) ([]byte, error)
	// Agree answers a member that wants to share a tunnel secret, as
	// noisenet.AgreeHandler does; hybrid tells whether the secret will be.
	// Nil: it is refused.
	Agree func(ctx context.Context, from ids.NodeID, hybrid bool, req []byte) (resp []byte, take func(keys.TunnelSecret), err error)

	// Departed is when this node left the cluster, before this start: then it
	// tells the others and publishes nothing else. Zero: it is a member.
	Departed time.Time

	// NextSeq returns a number above every one it has returned before, also
	// across restarts.
	NextSeq func() (uint64, error)
	// SaveSeeds keeps addresses of members for the next start. Nil: not kept.
	SaveSeeds func([]netip.AddrPort) error
	// Cache keeps the record set for the next start, so that a node that
	// restarts while it is cut off still knows its peers. Nil: not kept.
	Cache Cache
	// ItemCache keeps the cluster items, so that a restart never goes back to
	// an older target. Nil: not kept.
	ItemCache ItemCache

	Log *slog.Logger // nil: discarded
}

// Clock is what membership asks of a *clock.Clock.
type Clock interface {
	// Now is the time for dating things, and for verifying what is not dated.
	Now() time.Time
	// For returns the time with which to verify what begins, or was made, at a time.
	For(begins time.Time) time.Time
	// Saw takes the date of something verified that another authority signed.
	Saw(signed time.Time)
	// Settled reports whether the clock may date what this node signs unasked.
	Settled() bool
}

// Cache stores the record set. What Load returns is verified like anything
// else. Both are called from one goroutine at a time. FileCache implements it.
type Cache interface {
	Load() ([]record.Entry, error)
	Save([]record.Entry) error
}

// ItemCache stores cluster items, each as it was signed. What Load returns is
// verified like anything else. Both are called from one goroutine at a time.
// FileItems implements it.
type ItemCache interface {
	Load() ([][]byte, error)
	// Save replaces what is stored, durably.
	Save([][]byte) error
}

// DefaultRotateInterval is the least time between two target epochs, so that a
// member that asks again and again does not keep the cluster rotating.
const DefaultRotateInterval = time.Minute

func (o Options) withDefaults() (Options, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Clock == nil {
		o.Clock = clock.New(clock.Options{})
	}
	if o.Profile == "" {
		o.Profile = ProfileLAN
	}
	if _, ok := profiles[o.Profile]; !ok {
		return o, fmt.Errorf("make cluster: profile %q: want lan, wan or local", o.Profile)
	}
	if o.RotateInterval == 0 {
		o.RotateInterval = DefaultRotateInterval
	}
	if o.NextSeq == nil {
		return o, errors.New("make cluster: no source of sequence numbers")
	}
	if o.Identity.ID.IsZero() {
		return o, errors.New("make cluster: identity has no node ID")
	}
	return o, nil
}
