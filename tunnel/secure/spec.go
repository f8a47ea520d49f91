package secure

import (
	"errors"
	"net/netip"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Spec is the complete desired content of the secure namespace: what it does
// not name goes away. The order of Routes and Members has no meaning.
type Spec struct {
	Inner     netip.Addr // this node's inner address (IPv6), on lo with /128
	Routes    []Route    // at most one for each peer
	Members   []Member   // who may send into which network
	VXLANPort uint16     // UDP destination port of VXLAN
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
	Inner  []netip.Addr // addresses on lo with the /128 of an inner address
	Routes []Route      // of ours, sorted by peer
	// Foreign are the links that have no business here, sorted by name.
	Foreign []ForeignLink
	Members []Member // sorted; nil if the table is not intact
	// Intact reports whether the nftables table is exactly ours.
	Intact bool
	// Accepted and Dropped count packets: VXLAN packets of members, and
	// everything that the input chain refused, since the table was made.
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
	// down; the peer is unreachable until it is there.
	ErrNoDevice = errors.New("tunnel device does not exist or is down")
	// ErrDrift: Verify found the namespace different from the last Spec.
	ErrDrift = errors.New("secure namespace differs from what was set")
)
