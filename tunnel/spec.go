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
	// Port is the outer UDP port in the host namespace. 0: none, or the one port
	// that the driver has for all of its devices, as kernel ESP.
	Port uint16
	MTU  int // bytes of inner packet, IPv6 header included
}

// Peer is another node as the driver sees it.
type Peer struct {
	ID    ids.NodeID
	Inner netip.Addr // the peer's only allowed inner source address
	Keys  []PeerKey  // one for each device that both sides have
}

// PeerKey binds a peer to one of this node's devices.
type PeerKey struct {
	Epoch ids.Epoch
	Lane  ids.Lane
	// Public is the key of the peer's device; zero where the wire has none (ESP).
	Public keys.TunnelPublic
	// Key names the secret of this pair on this device. Zero means that there
	// is none: a WireGuard peer without preshared key; ESP cannot do without.
	Key keys.KeyID
	// Secret is the secret that Key names. It is needed only to install it: an
	// empty one leaves what is installed under Key as it is, and where nothing
	// is installed under Key the driver installs nothing and reports
	// ErrSecretGone. A driver does not keep it. ESP needs it until both halves
	// are installed (PeerState.In and Out).
	Secret keys.TunnelSecret `json:"-"`
	// Endpoint is where to send the first handshake. It is the zero value
	// on the side that must not initiate: with one initiator a pair cannot
	// discard each other's handshakes (DESIGN.md section 5). WireGuard only.
	Endpoint netip.AddrPort
	// ESP is what a security association needs besides the key.
	ESP ESP
}

// ESP describes the two security associations of a pair on a device.
type ESP struct {
	Local, Remote netip.Addr // outer addresses, of one family
	// In is chosen by this node, Out by the peer. While Out is zero only the
	// receiving half is installed.
	In, Out ids.SPI
	// InUDP: both travel in UDP (RFC 3948), for underlays that swallow ESP. It
	// is the same on both nodes: the kernel takes from an association only what
	// comes in the form that it was made for.
	InUDP bool
	// Port is the UDP port at which the peer receives what travels in UDP, and from
	// which it sends. 0: the driver's own, as on nodes that all have one port
	// (4500). It is 0 without InUDP.
	Port uint16
}

// State is what a driver found in the kernel and in its processes.
type State struct {
	Devices []DeviceState
}

// Overflow is why packets are dropped (DeviceState.Dropped) that came faster than a worker process takes
// them: there are too few processors for what is sent.
const Overflow = "queue full"

// DeviceState is one existing device of the driver.
type DeviceState struct {
	Name   string
	Epoch  ids.Epoch
	Lane   ids.Lane
	Public keys.TunnelPublic
	Port   uint16 // outer UDP port, also one that the driver has for all devices; 0: none
	MTU    int
	Up     bool
	Peers  []PeerState
	// Dropped are packets that were not let through, by why (such as Overflow); nil: the driver does
	// not count them.
	Dropped map[string]uint64
}

// PeerState is one peer on one device. Counters are bytes of the tunnel's own
// messages, as WireGuard counts them: with its headers, padding, keepalives and
// handshakes, without outer UDP and IP. ESP counts the packets inside, under the
// present key.
type PeerState struct {
	ID      ids.NodeID // zero if the key belongs to no peer of the last Spec
	Inner   netip.Addr // the one inner address it may use; zero if not exactly one
	Public  keys.TunnelPublic
	Key     keys.KeyID // of the secret that is installed; zero: none
	In, Out ids.SPI    // of the installed ESP associations
	Local   netip.Addr // own outer address of the ESP associations
	InUDP   bool       // of the ESP associations: ESP.InUDP
	// Endpoint is where the peer is, as far as is known. Of ESP it is the peer's outer
	// address, and the port is ESP.Port, 0 if it does not travel in UDP.
	Endpoint      netip.AddrPort
	LastHandshake time.Time // zero if there was none; always with ESP
	RxBytes       uint64
	TxBytes       uint64
	TxPackets     uint64 // ESP only: sent under this key
}
