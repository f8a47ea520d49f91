package tunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// Driver makes the kernel or a worker process match a Spec. A driver is used
// by one goroutine at a time.
type Driver interface {
	// Set makes devices and peers match spec: missing ones are added, others
	// changed by difference or removed. It goes on past a bad peer and joins
	// the errors, each a *PeerError where a peer is to blame. Repeating a Set
	// changes nothing: no session is dropped, no counter reset.
	Set(ctx context.Context, spec Spec) error
	// State reads back what exists.
	State(ctx context.Context) (State, error)
	// Remove deletes every device this driver owns, and ends its workers.
	Remove(ctx context.Context) error
	// Close releases handles. Devices and workers stay and carry on.
	Close() error
}

// Env is what a driver works in.
type Env struct {
	Node       ids.NodeID
	Host       *nl.Namespace // outer sockets live here
	Secure     *nl.Namespace // devices live here, nothing else does
	RuntimeDir string
	Log        *slog.Logger
}

// Kind is a row in the table of drivers that cmd hands to the agent.
type Kind struct {
	Name string // config.Driver* value, also shown by status
	// Probe reports whether the driver can work here, without leaving
	// anything behind. An *UnsupportedError names the missing feature; any
	// other error means that the probe itself could not run.
	Probe func(ctx context.Context, env Env) error
	// Slower says what the driver has to do without here, so that it works but is
	// slow, as an *UnsupportedError. Nil: there is no such thing.
	Slower func(ctx context.Context) error
	// Auto says why the driver is not good enough here to be chosen where nobody has named
	// one, although it works. Nil: it is never chosen so.
	Auto func() error
	// Open returns a driver that adopts what a predecessor left.
	Open func(ctx context.Context, env Env) (Driver, error)
	// Overhead is how many bytes the tunnel adds to an inner packet on an
	// underlay of the family of the given address.
	Overhead func(underlay netip.Addr) int
	// InUDP is how long an inner packet may be, at most, for a pair with
	// ESP.InUDP on an underlay of the family of the given address and of this
	// MTU, where Overhead is that of ESP as it is: networks become narrower only
	// while there are such pairs. With Compatible "esp" each pair may have ESP in
	// UDP; with "esp-udp" all have. Nil: Overhead says it for all pairs.
	InUDP func(underlay netip.Addr, mtu int) int
	// Compatible names the wire protocol: "wireguard" (kernel and userspace),
	// "esp", or "esp-udp", which is ESP in UDP only. Two nodes can talk when
	// theirs are equal; "esp" with InUDP can talk to "esp-udp", too.
	Compatible string
}

// ErrNotSupported matches every *UnsupportedError.
var ErrNotSupported = errors.New("not supported")

// UnsupportedError says that this machine lacks a feature a driver needs.
type UnsupportedError struct {
	Driver  string
	Feature string // for example "kernel WireGuard (CONFIG_WIREGUARD)"
	Since   string // for example "Linux 5.6"; empty if not tied to a version
	Err     error  // what the kernel answered; may be nil
}

// Error implements error.
func (e *UnsupportedError) Error() string {
	s := fmt.Sprintf("driver %s: %s is missing", e.Driver, e.Feature)
	if e.Since != "" {
		s += " (exists since " + e.Since + ")"
	}
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap returns the cause.
func (e *UnsupportedError) Unwrap() error { return e.Err }

// Is makes errors.Is(err, ErrNotSupported) hold.
func (e *UnsupportedError) Is(target error) bool { return target == ErrNotSupported }

// ErrSecretGone says that a PeerKey names a secret that is not installed and
// brings none to install: the pair has to agree on a new one.
var ErrSecretGone = errors.New("the secret is neither installed nor known")

// ErrUnclear says that it is not known whether a device works, since its worker has not
// answered yet. The device is then neither used nor given up.
var ErrUnclear = errors.New("unclear whether the device works")

// PeerError blames one peer for a failure in Set.
type PeerError struct {
	Peer ids.NodeID
	Err  error
}

// Error implements error.
func (e *PeerError) Error() string { return fmt.Sprintf("peer %s: %v", e.Peer, e.Err) }

// Unwrap returns the cause.
func (e *PeerError) Unwrap() error { return e.Err }

// Refusal is a Kind that does not work here, and why.
type Refusal struct {
	Kind string
	Err  error
}

// DeviceName is the link name of a device: unique on a machine with several
// agents, because wireguard-go's control socket is named after it. At most
// three epochs live, so the epoch modulo 1000 tells them apart; the full
// numbers are in the link's alias. At most 15 characters (IFNAMSIZ - 1).
func DeviceName(node ids.NodeID, epoch ids.Epoch, lane ids.Lane) string {
	return fmt.Sprintf("so%s%c%d", node.Short(), 'a'+rune(lane%26), epoch%1000)
}
