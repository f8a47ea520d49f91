package tunnel

import (
	"net/netip"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// Spec is the complete desired state of one driver on this node. Devices are
// sorted by (Epoch, Lane), Peers by ID.
type Spec struct {
	Revision ids.Revision
	Devices  []Device
	Peers    []Peer
}

// Device is one tunnel device: one epoch, one lane. The driver makes its key
// when it creates the device and reports the public half in State.
type Device struct {
	Epoch ids.Epoch
	Lane  ids.Lane
	Port  uint16 // outer UDP port in the host namespace
	MTU   int    // bytes of inner packet, IPv6 header included
}

// Peer is another node as the driver sees it.
type Peer struct {
	ID    ids.NodeID
	Inner netip.Addr // the peer's only allowed inner source address
	Keys  []PeerKey  // one for each device that both sides have
}

// PeerKey binds a peer's key to one of this node's devices.
type PeerKey struct {
	Epoch  ids.Epoch
	Lane   ids.Lane
	Public keys.TunnelPublic
	// Endpoint is where to send the first handshake. It is the zero value
	// on the side that must not initiate: with one initiator a pair cannot
	// discard each other's handshakes (DESIGN.md section 5).
	Endpoint netip.AddrPort
}

// State is what a driver found in the kernel and in its processes.
type State struct {
	Devices []DeviceState
}

// DeviceState is one existing device of the driver.
type DeviceState struct {
	Name   string
	Epoch  ids.Epoch
	Lane   ids.Lane
	Public keys.TunnelPublic
	Port   uint16
	MTU    int
	Up     bool
	Peers  []PeerState
}

// PeerState is one peer on one device. Counters are bytes of the tunnel's own
// messages, as WireGuard counts them: with its headers, padding, keepalives and
// handshakes, without outer UDP and IP.
type PeerState struct {
	ID            ids.NodeID // zero if the key belongs to no peer of the last Spec
	Public        keys.TunnelPublic
	Endpoint      netip.AddrPort
	LastHandshake time.Time // zero if there was none
	RxBytes       uint64
	TxBytes       uint64
}
