package vxlan

import (
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Observed is what the kernel has: the overlay networks found in the
// programmer's folder, sorted by name. Only Plan and tests look inside.
type Observed struct {
	Networks []Network
}

// Network is one observed overlay network namespace. Links in it are found by
// name: the namespace is ours, so the names in it are.
type Network struct {
	Name       string
	Exists     bool // false: a left-over file that names no namespace
	Unread     bool // could not be read this time; nothing below has a meaning
	Tuned      bool // sysctls are as wanted
	Bridge     *Bridge
	Devices    []Device  // by name
	Ports      []Port    // bridge ends of endpoints, by ID
	Strays     []string  // other links that are ports of the bridge, by name
	Forwards   []Forward // FDBs of the VXLAN devices, flood entries included
	Stations   []Station // FDB of the bridge, its own addresses left out
	Neighbours []Neighbour
}

// Bridge is the link named br0.
type Bridge struct {
	Kind     string // link kind; anything but "bridge" is in the way
	MTU      int
	Up       bool
	Marked   bool // carries our alias
	Fixed    bool // has our MAC, not one taken from a port
	Snooping bool // looks into IGMP and MLD
	VLANs    bool // filters VLANs or gives ports one
}

// device returns the device of a name, nil if there is none.
func (n Network) device(name string) *Device {
	i := slices.IndexFunc(n.Devices, func(d Device) bool { return d.Name == name })
	if i < 0 {
		return nil
	}
	return &n.Devices[i]
}

// Birthplace is the namespace whose sockets a VXLAN device uses, as the kernel
// reports it (IFLA_LINK_NETNSID). It cannot change and cannot be claimed.
type Birthplace string

// Birthplaces.
const (
	BornSecure  Birthplace = "secure"  // the secure namespace
	BornHost    Birthplace = "host"    // the host's namespace
	BornUnknown Birthplace = "unknown" // anywhere else, or not provable
)

// Device is a link named vx0, vx1 or vx2.
type Device struct {
	Name   string
	Kind   string // link kind; anything but "vxlan" is in the way
	Birth  Birthplace
	VNI    ids.VNI
	Local  netip.Addr
	Port   uint16
	MTU    int
	Up     bool
	Marked bool
	// Plain reports that every other property is as createDevice sets it: no
	// learning, no proxying, no group or lower device.
	Plain    bool
	InBridge bool
	Flags    PortFlags
}

// PortFlags are the properties of a bridge port (IFLA_BRPORT_*).
type PortFlags struct {
	Learning bool
	Flood    bool // unknown unicast
	// Lock drops frames whose source MAC is no station of the port. NoLock
	// says that this kernel has no such flag (before Linux 5.18).
	Lock, NoLock bool
	// Suppress answers ARP and ND from the bridge's neighbour table instead
	// of sending them through this port.
	Suppress bool
	// Isolated ports send nothing to each other.
	Isolated bool
	// Open: frames to many go through, nothing else is held back or changed.
	Open bool
}

// Port is the bridge end of an endpoint's veth pair.
type Port struct {
	ID       string
	MTU      int
	Up       bool
	Marked   bool
	InBridge bool
	Flags    PortFlags
	Where    Where
	Inner    Inner // if Where is InnerThere
}

// Where says what is known about the other end of a veth pair.
type Where int

// Places of the other end.
const (
	InnerUnseen Where = iota // no Spec says where, or its namespace cannot be opened
	InnerThere               // in the endpoint's namespace
	InnerLost                // the namespace is there, the link is not in it
)

// Inner is the end of a veth pair that is in the endpoint's namespace.
type Inner struct {
	MAC    ids.MAC
	MTU    int
	Up     bool
	Marked bool
	Addrs  []netip.Prefix // all, sorted
	Ours   []netip.Prefix // those that we added (ifa_proto), sorted
	Ways   []netip.Addr   // gateways of the default routes that we added, sorted
}

// Forward is an FDB entry of a VXLAN device: frames to MAC go to VTEP. The
// zero MAC stands for frames to many and to nobody known.
type Forward struct {
	Device  string // its name
	MAC     ids.MAC
	VTEP    netip.Addr
	Dynamic bool // learned, or set to age
}

// Station is an FDB entry of the bridge: MAC is behind the port named Port.
type Station struct {
	MAC     ids.MAC
	Port    string
	VLAN    int
	Dynamic bool
}

// Neighbour is a neighbour entry of the bridge, from which ARP and ND are
// answered.
type Neighbour struct {
	Addr    netip.Addr
	MAC     ids.MAC
	Dynamic bool
}
