package wguser

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/secure-overlay/secure-overlay/tunnel/internal/wg"
)

// The protocol of the control socket (WireGuard's "cross-platform
// configuration protocol") as far as the driver speaks it. wgctrl speaks it,
// too, but leaves each key that passes in half a dozen strings and buffers to
// the garbage collector, which clears none of them; the driver reads its
// devices every second. Here a key is in buffers that are cleared after use,
// and in the wgtypes.Device, which the caller clears.

// Requests of the driver.
const (
	getRequest = "get=1\n\n"
	// identityRequest is this program's own: the worker answers with its public
	// key, which WireGuard's protocol does not give out.
	identityRequest = "identity=1\n\n"
	// overflowKey is how many packets found no room to wait for the worker, in the same answer.
	overflowKey = "overflowed"
)

// maxLine is the longest line of an answer: a key takes 79 bytes.
const maxLine = 4096

// lineReader reads lines from a stream into one buffer.
type lineReader struct {
	r   io.Reader
	buf []byte // unread bytes are buf[from:to]
	// from and to bound the unread bytes.
	from, to int
}

func newLineReader(r io.Reader) *lineReader { return &lineReader{r: r, buf: make([]byte, maxLine)} }

// next returns the next line without its end. It is valid until the next call.
func (l *lineReader) next() ([]byte, error) {
	for {
		if n := bytes.IndexByte(l.buf[l.from:l.to], '\n'); n >= 0 {
			line := l.buf[l.from : l.from+n]
			l.from += n + 1
			return line, nil
		}
		l.to = copy(l.buf, l.buf[l.from:l.to])
		l.from = 0
		if l.to == len(l.buf) {
			return nil, fmt.Errorf("a line has more than %d bytes", maxLine)
		}
		n, err := l.r.Read(l.buf[l.to:])
		l.to += n
		if err != nil && n == 0 {
			return nil, err
		}
	}
}

func (l *lineReader) wipe() { clear(l.buf) }

// fields calls f for each "key=value" line up to the empty one that ends an
// answer, and returns the answer's error number as an error. f gets no line
// twice and must not keep one. No error quotes a line: it may hold a key.
func (l *lineReader) fields(f func(key string, value []byte) error) error {
	var verdict error
	answered := false
	for {
		line, err := l.next()
		if err != nil {
			return err
		}
		if len(line) == 0 {
			if !answered {
				return errors.New("the answer has no error number")
			}
			return verdict
		}
		key, value, ok := bytes.Cut(line, []byte("="))
		if !ok || len(key) > 40 {
			return fmt.Errorf("a line of %d bytes is no field", len(line))
		}
		if string(key) == "errno" {
			code, err := strconv.Atoi(string(value))
			if err != nil {
				return errors.New("the error number is no number")
			}
			if answered = true; code != 0 {
				verdict = unix.Errno(max(code, -code))
			}
			continue
		}
		if err := f(string(key), value); err != nil {
			return fmt.Errorf("field %s: %w", key, err)
		}
	}
}

// readDevice parses the answer to getRequest. The device's private key is passed
// over, so its public key is missing.
func readDevice(l *lineReader) (*wgtypes.Device, error) {
	d := &wgtypes.Device{Type: wgtypes.Userspace}
	err := l.fields(func(key string, value []byte) error {
		if key == "public_key" {
			d.Peers = wg.GrowPeers(d.Peers)
			return readKey(&d.Peers[len(d.Peers)-1].PublicKey, value)
		}
		if len(d.Peers) > 0 {
			return readPeerField(&d.Peers[len(d.Peers)-1], key, value)
		}
		if key == "listen_port" {
			return readInt(&d.ListenPort, value)
		}
		return nil
	})
	if err != nil {
		wg.WipePeers(d.Peers)
		return nil, err
	}
	return d, nil
}

func readPeerField(p *wgtypes.Peer, key string, value []byte) (err error) {
	switch key {
	case "preshared_key":
		return readKey(&p.PresharedKey, value)
	case "endpoint":
		var a netip.AddrPort
		a, err = netip.ParseAddrPort(string(value))
		p.Endpoint = net.UDPAddrFromAddrPort(a)
	case "persistent_keepalive_interval":
		var seconds int
		err = readInt(&seconds, value)
		p.PersistentKeepaliveInterval = time.Duration(seconds) * time.Second
	case "last_handshake_time_sec":
		var seconds int64
		if err = readInt(&seconds, value); seconds != 0 {
			p.LastHandshakeTime = time.Unix(seconds, 0)
		}
	case "last_handshake_time_nsec":
		var nanos int64
		if err = readInt(&nanos, value); !p.LastHandshakeTime.IsZero() {
			p.LastHandshakeTime = p.LastHandshakeTime.Add(time.Duration(nanos))
		}
	case "rx_bytes":
		err = readInt(&p.ReceiveBytes, value)
	case "tx_bytes":
		err = readInt(&p.TransmitBytes, value)
	case "allowed_ip":
		var a netip.Prefix
		if a, err = netip.ParsePrefix(string(value)); err == nil {
			p.AllowedIPs = append(p.AllowedIPs, net.IPNet{
				IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen()),
			})
		}
	}
	return err
}

func readKey(to *wgtypes.Key, value []byte) error {
	if len(value) != hex.EncodedLen(len(to)) {
		return fmt.Errorf("a key has %d digits", len(value))
	}
	if _, err := hex.Decode(to[:], value); err != nil {
		return errors.New("a key is not in hexadecimal digits") // the cause would quote one
	}
	return nil
}

func readInt[T int | int64](to *T, value []byte) error {
	n, err := strconv.ParseInt(string(value), 10, 64)
	*to = T(n)
	return err
}

// encodeSet returns the request that makes a change. The caller clears it.
func encodeSet(cfg wgtypes.Config) []byte {
	// Enough for all of it, so that nothing is copied in between.
	const device, peer, address = 256, 512, 64
	size := device
	for _, p := range cfg.Peers {
		size += peer + address*len(p.AllowedIPs)
	}
	b := append(make([]byte, 0, size), "set=1\n"...)
	if cfg.PrivateKey != nil {
		b = appendKey(b, "private_key", cfg.PrivateKey)
	}
	if cfg.ListenPort != nil {
		b = fmt.Appendf(b, "listen_port=%d\n", *cfg.ListenPort)
	}
	for i := range cfg.Peers {
		p := &cfg.Peers[i]
		b = appendKey(b, "public_key", &p.PublicKey)
		if p.Remove {
			b = append(b, "remove=true\n"...)
		}
		if p.UpdateOnly {
			b = append(b, "update_only=true\n"...)
		}
		if p.PresharedKey != nil {
			b = appendKey(b, "preshared_key", p.PresharedKey)
		}
		if p.Endpoint != nil {
			b = fmt.Appendf(b, "endpoint=%s\n", p.Endpoint.AddrPort())
		}
		if p.PersistentKeepaliveInterval != nil {
			b = fmt.Appendf(b, "persistent_keepalive_interval=%d\n", int(p.PersistentKeepaliveInterval.Seconds()))
		}
		if p.ReplaceAllowedIPs {
			b = append(b, "replace_allowed_ips=true\n"...)
		}
		for _, a := range p.AllowedIPs {
			b = fmt.Appendf(b, "allowed_ip=%s\n", a.String())
		}
	}
	return append(b, '\n')
}

func appendKey(b []byte, name string, k *wgtypes.Key) []byte {
	b = append(append(b, name...), '=')
	b = hex.AppendEncode(b, k[:])
	return append(b, '\n')
}
