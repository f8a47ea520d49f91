package wguser

import (
	"bytes"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/iotest"
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

func digits(n byte) string { k := key(n); return hex.EncodeToString(k[:]) }

func network(s string) net.IPNet {
	p := netip.MustParsePrefix(s)
	return net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// answer is what wireguard-go says about a device with two peers.
var answer = "private_key=" + digits(9) + "\nlisten_port=51871\nfwmark=1\n" +
	"public_key=" + digits(1) + "\npreshared_key=" + digits(2) + "\nprotocol_version=1\nendpoint=198.18.0.1:51871\n" +
	"last_handshake_time_sec=1700000000\nlast_handshake_time_nsec=5\ntx_bytes=7\nrx_bytes=8\n" +
	"persistent_keepalive_interval=10\nallowed_ip=fd00::a/128\nallowed_ip=10.0.0.0/8\n" +
	"public_key=" + digits(3) + "\npreshared_key=" + digits(0) + "\nprotocol_version=1\nendpoint=[fd00::1]:1\n" +
	"last_handshake_time_sec=0\nlast_handshake_time_nsec=0\ntx_bytes=0\nrx_bytes=0\n" +
	"persistent_keepalive_interval=0\nerrno=0\n\n"

func TestReadDevice(t *testing.T) {
	want := &wgtypes.Device{
		Type: wgtypes.Userspace, ListenPort: 51871,
		Peers: []wgtypes.Peer{{
			PublicKey: key(1), PresharedKey: key(2), Endpoint: &net.UDPAddr{IP: net.IP{198, 18, 0, 1}, Port: 51871},
			LastHandshakeTime: time.Unix(1700000000, 5), TransmitBytes: 7, ReceiveBytes: 8,
			PersistentKeepaliveInterval: 10 * time.Second,
			AllowedIPs:                  []net.IPNet{network("fd00::a/128"), network("10.0.0.0/8")},
		}, {
			PublicKey: key(3), Endpoint: &net.UDPAddr{IP: net.ParseIP("fd00::1"), Port: 1},
		}},
	}
	for name, r := range map[string]io.Reader{
		"at once": strings.NewReader(answer), "byte by byte": iotest.OneByteReader(strings.NewReader(answer)),
	} {
		l := newLineReader(r)
		got, err := readDevice(l)
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v (-want +got):\n%s", name, err, diff)
		}
		l.wipe()
		if len(bytes.Trim(l.buf, "\x00")) != 0 {
			t.Errorf("%s: the buffer still holds something", name)
		}
	}
	many := "listen_port=1\n" + strings.Repeat("public_key="+digits(1)+"\npreshared_key="+digits(2)+"\n", 1000) + "errno=0\n\n"
	got, err := readDevice(newLineReader(strings.NewReader(many)))
	if err != nil || len(got.Peers) != 1000 || got.Peers[999].PresharedKey != key(2) {
		t.Errorf("1000 peers: %v, %d", err, len(got.Peers))
	}
}

func TestReadDeviceErrors(t *testing.T) {
	for name, c := range map[string]struct {
		in   string
		want error
	}{
		"error number": {"errno=-98\n\n", unix.EADDRINUSE},
		"cut off":      {answer[:len(answer)-2], io.EOF},
		"no number":    {"listen_port=1\n\n", nil},
		"bad number":   {"errno=x\n\n", nil},
		"no field":     {"hello\nerrno=0\n\n", nil},
		"short key":    {"public_key=" + digits(1)[1:] + "\nerrno=0\n\n", nil},
		"bad key":      {"public_key=" + digits(1)[1:] + "z\nerrno=0\n\n", nil},
		"bad secret":   {"public_key=" + digits(1) + "\npreshared_key=" + digits(2)[1:] + "z\nerrno=0\n\n", nil},
		"bad endpoint": {"public_key=" + digits(1) + "\nendpoint=x\nerrno=0\n\n", nil},
		"bad address":  {"public_key=" + digits(1) + "\nallowed_ip=x\nerrno=0\n\n", nil},
		"bad count":    {"public_key=" + digits(1) + "\nrx_bytes=x\nerrno=0\n\n", nil},
		"long line":    {"public_key=" + digits(1) + "\nx=" + strings.Repeat("y", maxLine) + "\nerrno=0\n\n", nil},
		"long name":    {digits(7) + "=1\nerrno=0\n\n", nil},
	} {
		_, err := readDevice(newLineReader(strings.NewReader(c.in)))
		if err == nil || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: error %v, want %v", name, err, c.want)
		}
		if err != nil && (strings.Contains(err.Error(), digits(2)[1:]) || strings.Contains(err.Error(), digits(7))) {
			t.Errorf("%s: the error quotes a key: %v", name, err)
		}
	}
}

func TestEncodeSet(t *testing.T) {
	port, keepalive := 51871, 10*time.Second
	private, preshared := key(9), key(2)
	got := encodeSet(wgtypes.Config{
		PrivateKey: &private, ListenPort: &port,
		Peers: []wgtypes.PeerConfig{
			{PublicKey: key(3), Remove: true},
			{PublicKey: key(1), UpdateOnly: true, PresharedKey: &preshared, Endpoint: &net.UDPAddr{IP: net.ParseIP("fd00::1"), Port: 1},
				PersistentKeepaliveInterval: &keepalive, ReplaceAllowedIPs: true, AllowedIPs: []net.IPNet{network("fd00::a/128")}},
		},
	})
	want := "set=1\nprivate_key=" + digits(9) + "\nlisten_port=51871\npublic_key=" + digits(3) + "\nremove=true\n" +
		"public_key=" + digits(1) + "\nupdate_only=true\npreshared_key=" + digits(2) + "\nendpoint=[fd00::1]:1\n" +
		"persistent_keepalive_interval=10\nreplace_allowed_ips=true\nallowed_ip=fd00::a/128\n\n"
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("request (-want +got):\n%s", diff)
	}
	// One buffer from the start: appending to a full one leaves a copy.
	many := make([]wgtypes.PeerConfig, 500)
	for i := range many {
		many[i] = wgtypes.PeerConfig{PublicKey: key(1), UpdateOnly: true, PresharedKey: &preshared, PersistentKeepaliveInterval: &keepalive,
			Endpoint:          &net.UDPAddr{IP: net.ParseIP("fd00:1111:2222:3333:4444:5555:6666:7777"), Port: 65535},
			ReplaceAllowedIPs: true, AllowedIPs: []net.IPNet{network("fd00:1111:2222:3333:4444:5555:6666:7777/128")}}
	}
	empty, full := cap(encodeSet(wgtypes.Config{})), encodeSet(wgtypes.Config{PrivateKey: &private, ListenPort: &port, Peers: many})
	if each := (cap(full) - empty) / len(many); len(full) > empty+each*len(many) {
		t.Errorf("a request of %d bytes has outgrown its buffer", len(full))
	}
}

func FuzzReadDevice(f *testing.F) {
	f.Add([]byte(answer))
	f.Add([]byte("errno=1\n\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		d, err := readDevice(newLineReader(bytes.NewReader(in)))
		if (d == nil) != (err != nil) {
			t.Errorf("device %v, error %v", d, err)
		}
	})
}
