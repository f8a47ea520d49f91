package config

import (
	"net/netip"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/netdef"
)

// Defaults of the settings. Reference text: testdata/reference.yaml.
const (
	DefaultPath        = "/etc/secure-overlay/config.yaml"
	DefaultDataDir     = "/var/lib/secure-overlay"
	DefaultRuntimeDir  = "/run/secure-overlay"
	DefaultControlPort = 7946
	DefaultDataPort    = 51871
	DefaultVXLANPort   = 4789 // RFC 7348, section 8
)

// The tunnel drivers that a network may ask for. Auto picks kernel WireGuard
// where the kernel has it, else userspace WireGuard. There is no plaintext
// driver: a network without encryption has no tunnel.
const (
	DriverAuto      = "auto"
	DriverWireGuard = "wireguard"
	DriverUserspace = "userspace"
	DriverIPsec     = "ipsec"           // ESP in the kernel
	DriverIPsecUser = "ipsec-userspace" // ESP in UDP, in a process
)

// How ESP packets travel: as IP protocol 50, in UDP (RFC 3948), or, with each
// node on its own, in UDP where they do not pass as they are.
const (
	EncapAuto = "auto"
	EncapNone = "none"
	EncapUDP  = "udp"
)

// DataPorts is how many UDP ports from Data.Port on the tunnels use: one for
// each key epoch that may live at a time (keys/rotate.MaxEpochs).
const DataPorts = 3

// The most that one ESP key may encrypt, and the defaults. They can be lowered
// and not raised: 2^44 bytes are 2^40 blocks of AES, and the advantage of
// whoever tells AES-GCM from random grows with their square, here
// (2^40)^2 / 2^129 = 2^-49.
const (
	MaxESPPackets = 1 << 36
	MaxESPBytes   = 1 << 44
)

// Gossip timing profiles of the control plane.
const (
	ProfileLAN   = "lan"
	ProfileWAN   = "wan"
	ProfileLocal = "local"
)

// The limits of an explicit MTU, in bytes of IP packet. MinMTU is what every
// IPv4 host must accept (RFC 791), MinMTU6 what IPv6 needs (RFC 8200).
const (
	MinMTU  = 576
	MinMTU6 = 1280
	MaxMTU  = 65535
)

// Config is the complete, checked configuration of one agent. It is never
// changed after Load: a new configuration is a new value. Callers must not
// write to its slices.
type Config struct {
	Path       string // file it was read from; empty if there was none
	Node       Node
	DataDir    string // keys and durable state, absolute
	RuntimeDir string // socket, namespaces, attachments, absolute
	Control    Control
	Data       Data
	Keys       Keys
	Crypto     Crypto
	IPsec      IPsec
	Metrics    Metrics
	Log        Log
	Networks   []Network // in the order of the file

	origins map[string]Origin
}

// Node describes this machine.
type Node struct {
	Name string // 1..63 characters; shown to people, never identity
}

// Control describes the control plane (gossip and streams on one port).
type Control struct {
	Bind      netip.AddrPort   // where to listen, TCP and UDP
	Advertise []netip.AddrPort // where others reach this node, one address of a family at most; none: derive them
	Seeds     []string         // host:port or address:port of other members, resolved later
	Profile   string           // a Profile constant
}

// Data describes the data plane's ports in the host namespace.
type Data struct {
	Port      uint16 // first of DataPorts outer UDP ports of the tunnels
	VXLANPort uint16 // UDP destination port of VXLAN
}

// Keys describes how key epochs follow each other.
type Keys struct {
	RotateEvery time.Duration // 0: only on command
	MinInterval time.Duration // between the starts of two epochs of this node
	Drain       time.Duration // that an old epoch still receives after both sides left it
	Quiet       time.Duration // without a packet before an old epoch ends
	HoldDown    time.Duration // that an old epoch waits for a node that does not follow
	// ESPMaxPackets and ESPMaxBytes start an epoch early when one ESP key has
	// encrypted so much.
	ESPMaxPackets, ESPMaxBytes uint64
}

// Crypto describes what this node demands of its peers.
type Crypto struct {
	RequirePQ      bool          // refuse a peer without post-quantum key agreement
	ClockTolerance time.Duration // how far its clock and this one's may be apart
}

// IPsec describes the driver ipsec.
type IPsec struct {
	Encap string // an Encap constant
}

// Metrics describes where Prometheus can read, besides the control socket.
type Metrics struct {
	Listen netip.AddrPort // a loopback address, TCP; zero: nowhere else
}

// Log describes what the agent writes to stderr.
type Log struct {
	Level  string // debug, info, warn, error
	Format string // text or json
}

// Network is one overlay network.
type Network struct {
	Name      string
	VNI       ids.VNI        // never zero: derived from the name if not given
	Subnets   []netip.Prefix // at least one, masked, disjoint
	Encrypted bool
	// Moving is never in a file: a network of the cluster is on its way to what
	// Encrypted says, and has both forms until all nodes have followed.
	Moving bool
	MTU    int    // bytes of IP packet; 0: derive from the underlay
	Driver string // a Driver constant; DriverAuto on a plaintext network
	netdef.Options
	Labels []string // for people and their programs, ascending; no part of what nodes agree on
}

// Network returns the network called name.
func (c Config) Network(name string) (Network, bool) {
	i := slices.IndexFunc(c.Networks, func(n Network) bool { return n.Name == name })
	if i < 0 {
		return Network{}, false
	}
	return c.Networks[i], true
}

// Driver returns the one driver that the encrypted networks ask for: a pair
// of nodes shares one tunnel, so Load refuses two explicit choices.
func (c Config) Driver() string {
	for _, n := range c.Networks {
		if n.Tunnelled() && n.Driver != DriverAuto {
			return n.Driver
		}
	}
	return DriverAuto
}

// AnyEncrypted reports whether at least one network needs tunnels.
func (c Config) AnyEncrypted() bool { return slices.ContainsFunc(c.Networks, Network.Tunnelled) }

// Tunnelled reports whether frames of the network go through tunnels, all or some.
func (n Network) Tunnelled() bool { return n.Encrypted || n.Moving }

// Clear reports whether frames of the network may be readable on the underlay.
func (n Network) Clear() bool { return !n.Encrypted || n.Moving }

// SocketPath is the agent's control socket.
func (c Config) SocketPath() string { return c.RuntimeDir + "/agent.sock" }

// Origin says where a value came from.
type Origin string

// OriginDefault marks a value that nobody set.
const OriginDefault Origin = "default"

// Source is what Load reads.
type Source struct {
	Path  string            // config file; empty: no file
	Env   []string          // as os.Environ gives it
	Flags map[string]string // flag name without dashes -> value, only flags that were set
}
