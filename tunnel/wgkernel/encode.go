package wgkernel

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"
)

// The generic netlink messages of WireGuard (linux/wireguard.h) as far as the
// driver needs them. wgctrl knows them, too, but leaves copies of each key that
// passes in its buffers to the garbage collector, which clears none of them;
// the driver reads its devices every second. Here a key is in buffers that are
// cleared after use, and in the wgtypes.Device, which the caller clears.

const (
	// peersPerMessage keeps a message far below the 64 KiB that one attribute
	// can hold: a peer takes about 200 bytes.
	peersPerMessage = 64
	peerSize        = 256
	addressSize     = 48
)

// header is a generic netlink header.
func header(command byte) []byte { return []byte{command, unix.WG_GENL_VERSION, 0, 0} }

// encodeGet asks for a device.
func encodeGet(name string) []byte {
	return attr(header(unix.WG_CMD_GET_DEVICE), unix.WGDEVICE_A_IFNAME, append([]byte(name), 0))
}

// encodeSet returns the messages that make a change, in order. Each peer is in
// one of them as a whole. The caller clears them.
func encodeSet(name string, cfg wgtypes.Config) ([][]byte, error) {
	var out [][]byte
	for first := true; first || len(cfg.Peers) > 0; first = false {
		part := cfg.Peers[:min(peersPerMessage, len(cfg.Peers))]
		cfg.Peers = cfg.Peers[len(part):]
		size := 256
		for _, p := range part {
			size += peerSize + addressSize*len(p.AllowedIPs)
		}
		// Enough for all of it, so that nothing is copied in between.
		b := append(make([]byte, 0, size), header(unix.WG_CMD_SET_DEVICE)...)
		b = attr(b, unix.WGDEVICE_A_IFNAME, append([]byte(name), 0))
		if first && cfg.PrivateKey != nil {
			b = attr(b, unix.WGDEVICE_A_PRIVATE_KEY, cfg.PrivateKey[:])
		}
		if first && cfg.ListenPort != nil {
			b = attr(b, unix.WGDEVICE_A_LISTEN_PORT, binary.NativeEndian.AppendUint16(nil, uint16(*cfg.ListenPort)))
		}
		var err error
		if len(part) > 0 {
			b, err = nested(b, unix.WGDEVICE_A_PEERS, func(b []byte) ([]byte, error) { return encodePeers(b, part) })
		}
		out = append(out, b)
		if err != nil {
			wipe(out)
			return nil, err
		}
	}
	return out, nil
}

func wipe(messages [][]byte) {
	for _, m := range messages {
		clear(m[:cap(m)])
	}
}

// encodePeers writes a netlink array, whose elements' types are their places.
func encodePeers(b []byte, peers []wgtypes.PeerConfig) ([]byte, error) {
	var err error
	for i := range peers {
		b, err = nested(b, uint16(i), func(b []byte) ([]byte, error) { return encodePeer(b, &peers[i]) })
		if err != nil {
			return b, err
		}
	}
	return b, nil
}

func encodePeer(b []byte, p *wgtypes.PeerConfig) ([]byte, error) {
	b = attr(b, unix.WGPEER_A_PUBLIC_KEY, p.PublicKey[:])
	var flags uint32
	if p.Remove {
		flags |= unix.WGPEER_F_REMOVE_ME
	}
	if p.ReplaceAllowedIPs {
		flags |= unix.WGPEER_F_REPLACE_ALLOWEDIPS
	}
	if p.UpdateOnly {
		flags |= unix.WGPEER_F_UPDATE_ONLY
	}
	b = attr(b, unix.WGPEER_A_FLAGS, binary.NativeEndian.AppendUint32(nil, flags))
	if p.PresharedKey != nil {
		b = attr(b, unix.WGPEER_A_PRESHARED_KEY, p.PresharedKey[:])
	}
	if p.Endpoint != nil {
		b = attr(b, unix.WGPEER_A_ENDPOINT, encodeEndpoint(p.Endpoint.AddrPort()))
	}
	if p.PersistentKeepaliveInterval != nil {
		seconds := uint16(p.PersistentKeepaliveInterval.Seconds())
		b = attr(b, unix.WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, binary.NativeEndian.AppendUint16(nil, seconds))
	}
	if len(p.AllowedIPs) == 0 {
		return b, nil
	}
	return nested(b, unix.WGPEER_A_ALLOWEDIPS, func(b []byte) ([]byte, error) {
		var err error
		for i, n := range p.AllowedIPs {
			b, err = nested(b, uint16(i), func(b []byte) ([]byte, error) { return encodeAllowed(b, n) })
			if err != nil {
				return b, err
			}
		}
		return b, nil
	})
}

// encodeEndpoint returns a struct sockaddr_in or sockaddr_in6: family, port in
// network order, then the address, behind a flow label in the second.
func encodeEndpoint(e netip.AddrPort) []byte {
	b := make([]byte, unix.SizeofSockaddrInet4, unix.SizeofSockaddrInet6)
	family := uint16(unix.AF_INET)
	a := e.Addr().Unmap()
	if a.Is4() {
		copy(b[4:], a.AsSlice())
	} else {
		b, family = b[:unix.SizeofSockaddrInet6], unix.AF_INET6
		copy(b[8:], a.AsSlice())
	}
	binary.NativeEndian.PutUint16(b, family)
	binary.BigEndian.PutUint16(b[2:], e.Port())
	return b
}

func encodeAllowed(b []byte, n net.IPNet) ([]byte, error) {
	a, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if a = a.Unmap(); !ok || bits != a.BitLen() {
		return b, fmt.Errorf("allowed address %v is not a network", n)
	}
	family := uint16(unix.AF_INET6)
	if a.Is4() {
		family = unix.AF_INET
	}
	b = attr(b, unix.WGALLOWEDIP_A_FAMILY, binary.NativeEndian.AppendUint16(nil, family))
	b = attr(b, unix.WGALLOWEDIP_A_IPADDR, a.AsSlice())
	return attr(b, unix.WGALLOWEDIP_A_CIDR_MASK, []byte{byte(ones)}), nil
}

// attr appends a netlink attribute, padded to four bytes.
func attr(b []byte, typ uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(unix.SizeofNlAttr+len(value)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = append(b, value...)
	return append(b, make([]byte, -len(value)&3)...)
}

// nested appends an attribute whose value content appends.
func nested(b []byte, typ uint16, content func([]byte) ([]byte, error)) ([]byte, error) {
	start := len(b)
	b, err := content(attr(b, typ|unix.NLA_F_NESTED, nil))
	if n := len(b) - start; n > 0xffff {
		return b, fmt.Errorf("a message of %d bytes is too long", n)
	}
	binary.NativeEndian.PutUint16(b[start:], uint16(len(b)-start))
	return b, err
}
