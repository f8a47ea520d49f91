package e2e

import (
	"net/netip"
	"testing"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// injected is how many frames the attacker sends in all.
const injected = 10_000

// TestInjection sends VXLAN frames for an encrypted network from a host that
// is no member: right VNI, right MAC, right or spoofed sources, every port
// that is open anywhere and some that are not. None may reach the endpoint.
// The same frames for the plaintext network arrive: the control.
func TestInjection(t *testing.T) {
	ctx, f := start(t, 2, bothNetworks())
	attacker, err := f.Lab.Host("attacker")
	if err != nil {
		t.Fatal(err)
	}
	in, err := netlab.OpenInjector(attacker.NS())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close() }()
	blue, lab := attachAll(t, ctx, f, "blue"), attachAll(t, ctx, f, "lab")
	victim, friend := f.Nodes[0], f.Nodes[1]
	marker := []byte("a frame from outside ")

	// The control comes first: it proves that the frames are well made.
	labFrame := frameFor(lab[1], lab[0], marker)
	seen := listen(t, lab[0], marker)
	for range 100 {
		send(t, in, friend.Host.V4(), victim.Host.V4(), 4789, ids.DeriveVNI("lab"), labFrame)
	}
	if err := seen.WaitMatched(ctx, 50); err != nil {
		t.Fatalf("positive control: frames for the plaintext network do not arrive: %v", err)
	}

	heard := listen(t, blue[0], marker)
	frame := frameFor(blue[1], blue[0], marker)
	ports := []uint16{4789, 8472, 51871, 7946, 4790, 1}
	sources := []netip.Addr{friend.Host.V4(), attacker.V4(), victim.Host.V4()}
	sources6 := []netip.Addr{friend.Host.V6(), attacker.V6()}
	for i := range injected {
		port := uint16(i*13 + 1) // all over the range, and the likely ones often
		if i%3 != 0 {
			port = ports[i/3%len(ports)]
		}
		if i%2 == 0 {
			send(t, in, sources[i/2%len(sources)], victim.Host.V4(), port, ids.DeriveVNI("blue"), frame)
		} else {
			send(t, in, sources6[i/2%len(sources6)], victim.Host.V6(), port, ids.DeriveVNI("blue"), frame)
		}
	}
	// The network still works, and what is sent after the frames comes after
	// them: when this ping is answered the frames have had their chance.
	mustPing(t, ctx, blue[1], blue[0].V4(), 56)
	if n := heard.Stop(); n.Matched != 0 || n.Dropped != 0 || n.Frames == 0 {
		t.Errorf("%d of %d injected frames reached the endpoint (%+v)", n.Matched, injected, n)
	}
	status, err := victim.Status(ctx)
	if err != nil || status.State != api.StateOK {
		t.Errorf("after the attack: state %s, %v", status.State, err)
	}
}

// frameFor builds the Ethernet frame that one container would send another.
func frameFor(from, to fleet.Attached, payload []byte) []byte {
	packet := netlab.UDPPacket(netip.AddrPortFrom(from.V4(), 4000), netip.AddrPortFrom(to.V4(), 4000), payload)
	return netlab.EthernetFrame(from.Endpoint.MAC, to.Endpoint.MAC, packet)
}

func send(t *testing.T, in *netlab.Injector, src, dst netip.Addr, port uint16, vni ids.VNI, frame []byte) {
	t.Helper()
	err := in.UDP(netip.AddrPortFrom(src, 40000), netip.AddrPortFrom(dst, port), netlab.VXLANPayload(uint32(vni), frame))
	if err != nil {
		t.Fatal(err)
	}
}

// listen watches a container's own link for a marker.
func listen(t *testing.T, at fleet.Attached, marker []byte) *netlab.Capture {
	t.Helper()
	c, err := netlab.OpenCapture(at.Box.NS(), at.Endpoint.Ifname, netlab.ContainsMarker(marker))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Stop() })
	return c
}
