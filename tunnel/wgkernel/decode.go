package wgkernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/secure-overlay/secure-overlay/tunnel/internal/wg"
)

var errMalformed = errors.New("malformed attribute")

// attributes calls f for each attribute in b, which must not keep the value.
func attributes(b []byte, f func(typ uint16, value []byte) error) error {
	for len(b) >= unix.SizeofNlAttr {
		size := int(binary.NativeEndian.Uint16(b))
		typ := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if size < unix.SizeofNlAttr || size > len(b) {
			return errMalformed
		}
		if err := f(typ, b[unix.SizeofNlAttr:size]); err != nil {
			return err
		}
		b = b[min((size+3)&^3, len(b)):]
	}
	return nil
}

// decodeInto adds to d what one message says, its generic netlink header
// included. A device with many peers comes in several messages; a peer with
// many addresses may go on in the next. The private key is passed over: without
// one the kernel names no public key, which is all that one needs to know of it.
func decodeInto(d *wgtypes.Device, m []byte) error {
	if len(m) < unix.GENL_HDRLEN {
		return errMalformed
	}
	return attributes(m[unix.GENL_HDRLEN:], func(typ uint16, v []byte) error {
		switch typ {
		case unix.WGDEVICE_A_IFNAME:
			d.Name = unix.ByteSliceToString(v)
		case unix.WGDEVICE_A_PUBLIC_KEY:
			return decodeKey(&d.PublicKey, v)
		case unix.WGDEVICE_A_LISTEN_PORT:
			port, err := decodeUint(v, 2)
			d.ListenPort = int(port)
			return err
		case unix.WGDEVICE_A_PEERS:
			return attributes(v, func(_ uint16, v []byte) error { return decodePeer(d, v) })
		}
		return nil
	})
}

func decodePeer(d *wgtypes.Device, b []byte) error {
	d.Peers = wg.GrowPeers(d.Peers)
	p := &d.Peers[len(d.Peers)-1]
	err := attributes(b, func(typ uint16, v []byte) error { return decodePeerField(p, typ, v) })
	if err != nil {
		return fmt.Errorf("peer %d: %w", len(d.Peers), err)
	}
	if n := len(d.Peers); n > 1 && d.Peers[n-2].PublicKey == p.PublicKey {
		d.Peers[n-2].AllowedIPs = append(d.Peers[n-2].AllowedIPs, p.AllowedIPs...)
		clear(p.PresharedKey[:])
		d.Peers = d.Peers[:n-1]
	}
	return nil
}

func decodePeerField(p *wgtypes.Peer, typ uint16, v []byte) error {
	var n uint64
	var err error
	switch typ {
	case unix.WGPEER_A_PUBLIC_KEY:
		return decodeKey(&p.PublicKey, v)
	case unix.WGPEER_A_PRESHARED_KEY:
		return decodeKey(&p.PresharedKey, v)
	case unix.WGPEER_A_ENDPOINT:
		p.Endpoint, err = decodeEndpoint(v)
	case unix.WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL:
		n, err = decodeUint(v, 2)
		p.PersistentKeepaliveInterval = time.Duration(n) * time.Second
	case unix.WGPEER_A_LAST_HANDSHAKE_TIME:
		// struct __kernel_timespec: seconds and nanoseconds, 64 bits each.
		if len(v) != 16 {
			return errMalformed
		}
		seconds, nanos := int64(binary.NativeEndian.Uint64(v)), int64(binary.NativeEndian.Uint64(v[8:]))
		if seconds > 0 || nanos > 0 {
			p.LastHandshakeTime = time.Unix(seconds, nanos)
		}
	case unix.WGPEER_A_RX_BYTES:
		n, err = decodeUint(v, 8)
		p.ReceiveBytes = int64(n)
	case unix.WGPEER_A_TX_BYTES:
		n, err = decodeUint(v, 8)
		p.TransmitBytes = int64(n)
	case unix.WGPEER_A_ALLOWEDIPS:
		return attributes(v, func(_ uint16, v []byte) error { return decodeAllowed(p, v) })
	}
	return err
}

func decodeAllowed(p *wgtypes.Peer, b []byte) error {
	var a netip.Addr
	ones := -1
	err := attributes(b, func(typ uint16, v []byte) error {
		switch typ {
		case unix.WGALLOWEDIP_A_IPADDR:
			a, _ = netip.AddrFromSlice(v)
		case unix.WGALLOWEDIP_A_CIDR_MASK:
			n, err := decodeUint(v, 1)
			ones = int(n)
			return err
		}
		return nil
	})
	if err != nil || !a.IsValid() || ones < 0 || ones > a.BitLen() {
		return errMalformed
	}
	p.AllowedIPs = append(p.AllowedIPs, net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(ones, a.BitLen())})
	return nil
}

// decodeEndpoint reads what encodeEndpoint writes.
func decodeEndpoint(v []byte) (*net.UDPAddr, error) {
	var a netip.Addr
	switch len(v) {
	case unix.SizeofSockaddrInet4:
		a, _ = netip.AddrFromSlice(v[4:8])
	case unix.SizeofSockaddrInet6:
		a, _ = netip.AddrFromSlice(v[8:24])
	default:
		return nil, errMalformed
	}
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, binary.BigEndian.Uint16(v[2:]))), nil
}

func decodeKey(to *wgtypes.Key, v []byte) error {
	if len(v) != len(to) {
		return errMalformed
	}
	copy(to[:], v)
	return nil
}

// decodeUint reads a number of a size in bytes.
func decodeUint(v []byte, size int) (uint64, error) {
	if len(v) != size {
		return 0, errMalformed
	}
	switch size {
	case 1:
		return uint64(v[0]), nil
	case 2:
		return uint64(binary.NativeEndian.Uint16(v)), nil
	default:
		return binary.NativeEndian.Uint64(v), nil
	}
}
