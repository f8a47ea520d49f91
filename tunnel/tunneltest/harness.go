package tunneltest

import (
	"net"
	"net/netip"
	"testing"

	"github.com/secure-overlay/secure-overlay/tunnel"
)

// Harness is a driver and the world to test it in.
type Harness struct {
	Kind tunnel.Kind
	// Hosts makes n hosts that reach each other, in ascending order of node
	// ID, and removes them when the test ends. No two calls share a node.
	Hosts func(t *testing.T, n int) []*Host
	// Leftovers lists what exists of the hosts' drivers besides links:
	// processes, sockets, files. Nil means that a driver of this kind has
	// nothing else.
	Leftovers func(hosts []*Host) ([]string, error)
	// Keyless says that devices have no public key and make no handshake: ESP.
	// Peers then get outer addresses and SPIs in place of public key and
	// endpoint.
	Keyless bool
	// Loosen makes a host's device send whatever inner source a packet has, as
	// a member with a changed program would: whether the receiver drops it is
	// what a case tests. Nil means that devices do so anyway.
	Loosen func(t *testing.T, h *Host, device string)
	// InProcess says that the devices are in this process, hence their secrets.
	InProcess bool
	// InUDP says that associations travel in UDP (tunnel.ESP.InUDP). Each names
	// the port of the peer's device.
	InUDP bool
	// NoPort says that devices have no outer UDP port of their own: at most one
	// that the driver has for all of them, which it shows.
	NoPort bool
	// Marks says that the driver copies marks of congestion, out and back, and that its hosts are
	// Namespaces.
	Marks bool
	// Other is the driver of every second host, from the second on, for Interoperate;
	// the rest of a Harness is about the driver of the first.
	Other *Other
}

// Other is a driver of the same wire.
type Other struct {
	Kind   tunnel.Kind
	NoPort bool // Harness.NoPort
}

// Host is one machine of the world.
type Host struct {
	Env      tunnel.Env
	Underlay []netip.Addr // IPv4 and IPv6, in this order
	Net      Net
}

// Inner returns the host's inner address.
func (h *Host) Inner() netip.Addr { return h.Env.Node.InnerAddr() }

// Net is what the suite does to a host from outside the driver: the part of
// tunnel/secure, of applications, and of other programs on the machine.
type Net interface {
	// Route sends packets for a peer's inner address into a device, in place
	// of any earlier route for it, in one step.
	Route(peer netip.Addr, device string) error
	// Listen opens a UDP socket in the secure namespace on an address, which
	// the host gets if it does not have it. Its packets are not fragmented.
	Listen(inner netip.Addr) (net.PacketConn, error)
	// Links lists link names and interface indices of both namespaces,
	// except loopback and what the world itself made.
	Links() (host, secure map[string]int, err error)
	// DeleteLink deletes a link of the secure namespace behind the driver's
	// back.
	DeleteLink(device string) error
}
