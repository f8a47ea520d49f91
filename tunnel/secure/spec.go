package secure

import (
	"errors"
	"net/netip"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Spec is the complete desired content of the secure namespace: what it does
// not name goes away. The order of Routes, Probes and Members has no meaning.
type Spec struct {
	Inner  netip.Addr // this node's inner address (IPv6), on lo with /128
	Routes []Route    // at most one for each peer
	// Probes are further ways to peers, at most one for each peer and device,
	// whether the peer has a route or not. They carry what is bound for the
	// device, such as a Prober's packets and the answers to those that came
	// through it, and nothing else: without a route a peer is unreachable.
	Probes    []Route
	Members   []Member // who may send into which network
	VXLANPort uint16   // UDP destination port of VXLAN
}

// Route says through which tunnel device packets to a peer leave.
type Route struct {
	Peer   netip.Addr // inner address of the peer
	Device string     // link name of a tunnel device in the secure namespace
}

// Member allows VXLAN packets of one network from one inner source.
type Member struct {
	Inner netip.Addr
	VNI   ids.VNI
}

// State is what Observe found.
type State struct {
	Bound   bool          // the path still names this namespace
	Tuned   bool          // the sysctls are as wanted
	Blocked bool          // lo is up and both unreachable defaults are there
	Inner   []netip.Addr  // addresses on lo, loopback addresses left out
	Routes  []Route       // of ours, sorted by peer
	Probes  []Route       // of ours, sorted by peer and device
	Strays  int           // routes and routing rules of ours that mean nothing
	Foreign []ForeignLink // links that have no business here, sorted by name
	// Intact reports whether the nftables table is exactly ours, for Port;
	// Members are what its set allows, sorted.
	Intact  bool
	Port    uint16
	Members []Member
	// Accepted counts VXLAN packets of members; Dropped counts what the
	// input and output chains refused. Both since the table was made.
	Accepted, Dropped uint64
}

// ForeignLink is a link in the secure namespace that is not ours.
type ForeignLink struct {
	Name string
	Kind string // link kind of the kernel, such as "veth"; "device" for hardware
	Up   bool
}

// Errors that the agent decides on with errors.Is.
var (
	// ErrForeignLink: a link that is no tunnel device of ours is in the
	// secure namespace.
	ErrForeignLink = errors.New("foreign link in the secure namespace")
	// ErrNoDevice: a route names a tunnel device that does not exist or is
	// down. Until it is there the peer's route stays in the tunnel device that
	// it has led to, if that lives, and the peer is unreachable if not.
	ErrNoDevice = errors.New("tunnel device does not exist or is down")
	// ErrDrift: Verify found the namespace different from the last Spec.
	ErrDrift = errors.New("secure namespace differs from what was set")
)

// RouteError blames one peer's route.
type RouteError struct {
	Route Route
	Err   error
}

// Error implements error.
func (e *RouteError) Error() string {
	return "route to " + e.Route.Peer.String() + " through " + e.Route.Device + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *RouteError) Unwrap() error { return e.Err }
