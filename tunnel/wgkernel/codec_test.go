package wgkernel

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

func key(n byte) (k wgtypes.Key) {
	for i := range k {
		k[i] = n
	}
	return k
}

func network(s string) net.IPNet {
	p := netip.MustParsePrefix(s)
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func config(peers int) wgtypes.Config {
	port, keepalive := 51871, 10*time.Second
	private, preshared := key(9), key(2)
	cfg := wgtypes.Config{PrivateKey: &private, ListenPort: &port}
	for i := range peers {
		p := wgtypes.PeerConfig{
			PublicKey: key(byte(i)), PresharedKey: &preshared, PersistentKeepaliveInterval: &keepalive, ReplaceAllowedIPs: true,
			AllowedIPs: []net.IPNet{network("fd00::a/128"), network("10.0.0.0/8")},
			Endpoint:   &net.UDPAddr{IP: net.IP{198, 18, 0, 1}, Port: 51871},
		}
		if i%2 == 1 {
			p.Endpoint = &net.UDPAddr{IP: net.ParseIP("fd00::1"), Port: 1}
		}
		cfg.Peers = append(cfg.Peers, p)
	}
	return cfg
}

// TestEncodeAndDecode reads requests as if they were answers: both have the
// same attributes.
func TestEncodeAndDecode(t *testing.T) {
	cfg := config(150)
	messages, err := encodeSet("soabcdefa1", cfg)
	if err != nil || len(messages) != 3 {
		t.Fatalf("%d messages, %v", len(messages), err)
	}
	d := &wgtypes.Device{}
	for _, m := range messages {
		if string(m[:4]) != "\x01\x01\x00\x00" {
			t.Errorf("header %x", m[:4])
		}
		if err := decodeInto(d, m); err != nil {
			t.Fatal(err)
		}
	}
	want := &wgtypes.Device{Name: "soabcdefa1", ListenPort: 51871}
	for _, p := range cfg.Peers {
		want.Peers = append(want.Peers, wgtypes.Peer{
			PublicKey: p.PublicKey, PresharedKey: *p.PresharedKey, Endpoint: p.Endpoint,
			PersistentKeepaliveInterval: *p.PersistentKeepaliveInterval, AllowedIPs: p.AllowedIPs,
		})
	}
	if diff := cmp.Diff(want, d); diff != "" {
		t.Errorf("device (-want +got):\n%s", diff)
	}
	wipe(messages)
	for _, m := range messages {
		for _, c := range m[:cap(m)] {
			if c != 0 {
				t.Fatal("a message still holds something")
			}
		}
	}
	cfg.Peers[0].AllowedIPs[0].Mask = nil
	if _, err := encodeSet("x", cfg); err == nil {
		t.Error("an address without a mask was encoded")
	}
}

// TestEncodePeer has the bytes of a small request, attribute by attribute.
func TestEncodePeer(t *testing.T) {
	messages, err := encodeSet("so", wgtypes.Config{Peers: []wgtypes.PeerConfig{
		{PublicKey: key(3), Remove: true}, {PublicKey: key(4), UpdateOnly: true},
	}})
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d messages, %v", len(messages), err)
	}
	peer := func(place uint16, n byte, flags uint32) []byte {
		k := key(n)
		b := attr(nil, unix.WGPEER_A_PUBLIC_KEY, k[:])
		b = attr(b, unix.WGPEER_A_FLAGS, binary.NativeEndian.AppendUint32(nil, flags))
		return attr(nil, place|unix.NLA_F_NESTED, b)
	}
	want := attr([]byte{1, 1, 0, 0}, unix.WGDEVICE_A_IFNAME, []byte("so\x00"))
	want = attr(want, unix.WGDEVICE_A_PEERS|unix.NLA_F_NESTED, append(peer(0, 3, 1), peer(1, 4, 4)...))
	if diff := cmp.Diff(want, messages[0]); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
}

// TestDecodeContinuedPeer: a peer with many addresses goes on in the next
// message, and there has nothing but its key and addresses.
func TestDecodeContinuedPeer(t *testing.T) {
	k, preshared := key(1), key(2)
	device := func(content []byte) []byte {
		list := attr(nil, unix.NLA_F_NESTED, content)
		return attr(header(unix.WG_CMD_GET_DEVICE), unix.WGDEVICE_A_PEERS|unix.NLA_F_NESTED, list)
	}
	addresses := func(s string) []byte {
		b, err := nested(nil, unix.WGPEER_A_ALLOWEDIPS, func(b []byte) ([]byte, error) {
			return nested(b, 0, func(b []byte) ([]byte, error) { return encodeAllowed(b, network(s)) })
		})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	handshake := binary.NativeEndian.AppendUint64(binary.NativeEndian.AppendUint64(nil, 1700000000), 5)
	first := attr(attr(nil, unix.WGPEER_A_PUBLIC_KEY, k[:]), unix.WGPEER_A_PRESHARED_KEY, preshared[:])
	first = attr(first, unix.WGPEER_A_LAST_HANDSHAKE_TIME, handshake)
	first = attr(first, unix.WGPEER_A_RX_BYTES, binary.NativeEndian.AppendUint64(nil, 8))
	first = attr(first, unix.WGPEER_A_TX_BYTES, binary.NativeEndian.AppendUint64(nil, 7))
	d := &wgtypes.Device{}
	err := errors.Join(
		decodeInto(d, device(append(first, addresses("fd00::a/128")...))),
		decodeInto(d, device(append(attr(nil, unix.WGPEER_A_PUBLIC_KEY, k[:]), addresses("10.0.0.0/8")...))),
	)
	want := []wgtypes.Peer{{
		PublicKey: k, PresharedKey: preshared, LastHandshakeTime: time.Unix(1700000000, 5), ReceiveBytes: 8, TransmitBytes: 7,
		AllowedIPs: []net.IPNet{network("fd00::a/128"), network("10.0.0.0/8")},
	}}
	if diff := cmp.Diff(want, d.Peers); diff != "" || err != nil {
		t.Errorf("peers: %v (-want +got):\n%s", err, diff)
	}
}

func FuzzDecode(f *testing.F) {
	messages, err := encodeSet("soabcdefa1", config(3))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(messages[0])
	f.Add([]byte{0, 1, 0, 0, 255, 255, 8, 0})
	f.Fuzz(func(t *testing.T, m []byte) {
		d := &wgtypes.Device{}
		if err := decodeInto(d, m); err != nil {
			return
		}
		for _, p := range d.Peers {
			for _, n := range p.AllowedIPs {
				if ones, bits := n.Mask.Size(); bits != 8*len(n.IP) || ones > bits {
					t.Errorf("allowed address %v", n)
				}
			}
		}
	})
}
