package record

import (
	"net/netip"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/netdef"
	"github.com/secure-overlay/secure-overlay/keys"
)

// Limits of one record; a decoder refuses more before it allocates.
const (
	MaxEndpoints = 4    // underlay addresses
	MaxTunnels   = 16   // tunnel devices
	MaxNetworks  = 256  // networks joined
	MaxSubnets   = 8    // subnets of a network
	MaxBlocks    = 64   // address blocks claimed in a network
	MaxAttached  = 4096 // endpoints on the node
	MaxAddrs     = 8    // addresses of an endpoint
	MaxServices  = netdef.MaxServices

	// MaxNames bounds the names and services of all endpoints together, in bytes,
	// and one more for each service.
	MaxNames = 1 << 17
)

// Node is the content of a node's record. The complete state of the node is
// one signed object: an endpoint that is not in the newest record is gone, so
// no deletion marker can be forged or lost.
type Node struct {
	ID       ids.NodeID
	Seq      uint64 // grows with each publication, also across restarts; from FirstFinal on: see Final
	Underlay []Underlay
	Tunnels  []Tunnel
	Able     Able
	Networks []Network
	Attached []Attached
}

// Underlay is an address at which the node can be reached.
type Underlay struct {
	Control netip.AddrPort // gossip, TCP and UDP
	MTU     uint16         // of the node's link or route behind that address
}

// Tunnel is one live tunnel device of the node.
type Tunnel struct {
	Epoch    ids.Epoch
	Lane     ids.Lane
	Instance uint32 // grows each time the device is made anew in its epoch
	Wire     Wire
	Public   keys.TunnelPublic
	// Port is the outer UDP port, at every Underlay address. Of ESP it is where the
	// device takes ESP in UDP, 0 if it takes none.
	Port uint16
}

// Able is what a node could make tunnel devices with, were it asked to, for whoever
// chooses a driver for all nodes. It promises nothing: which devices there are,
// Tunnels says. Bits that a build does not know are kept.
type Able uint8

// What a node may be able to.
const (
	AbleKernelWireGuard Able = 0x01 // WireGuard, by its kernel
	AbleFastESP         Able = 0x02 // ESP in UDP, by a process, on a processor with AES instructions
)

// Wire is the protocol of a tunnel device on the wire.
type Wire uint8

// The wire protocols.
const (
	WireNone      Wire = 0
	WireWireGuard Wire = 1
	WireESP       Wire = 2
	WireESPUDP    Wire = 3 // ESP in UDP (RFC 3948)
)

// ESP reports whether tunnels of this wire are made of ESP associations.
func (w Wire) ESP() bool { return w == WireESP || w == WireESPUDP }

// Network is a network that the node takes part in, as the node's
// configuration defines it. Two nodes whose definitions differ do not connect
// the network.
type Network struct {
	Name      string // 1..63 bytes
	VNI       ids.VNI
	Encrypted bool
	// Both: the node has the network in both forms, encrypted and plaintext, and
	// receives either. It is on its way to what Encrypted says.
	Both bool
	// Moved, with Both: to every node that it knows to be on the network it sends
	// as Encrypted says, and no more in the other form.
	Moved    bool
	Subnets  []netip.Prefix
	Blocks   []netip.Prefix // parts of the subnets that the node claims
	VTEPPort uint16         // VXLAN UDP port
	netdef.Options
}

// Attached is an endpoint on the node.
type Attached struct {
	VNI      ids.VNI
	MAC      ids.MAC
	Addrs    []netip.Addr
	Name     string   // a label of a domain name (netdef.IsDNSLabel); empty: it has none
	Services []string // labels, too; several endpoints may share one
}
