package ipsec

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// DefaultPort is the UDP port of ESP in UDP (RFC 3948 section 2).
const DefaultPort = 4500

// encapSockets opens, in the calling thread's namespace, the two UDP sockets
// at which the kernel takes ESP out of UDP. It does so for as long as they are
// open, without waking anybody. Port 0 is any.
func encapSockets(port uint16) (fds []int, err error) {
	defer func() {
		if err != nil {
			closeAll(fds)
			fds = nil
		}
	}()
	for _, a := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		family, where := unix.AF_INET, unix.Sockaddr(&unix.SockaddrInet4{Port: int(port)})
		if a.Is6() {
			family, where = unix.AF_INET6, &unix.SockaddrInet6{Port: int(port)}
		}
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return fds, os.NewSyscallError("socket", err)
		}
		fds = append(fds, fd)
		if a.Is6() {
			if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
				return fds, os.NewSyscallError("setsockopt", err)
			}
		}
		// What is not ESP, such as an IKE daemon's packets, nobody reads: it
		// is dropped, not kept. ESP is taken before the filter sees it.
		reject := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
		err = unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &reject[0]})
		if err != nil {
			return fds, os.NewSyscallError("setsockopt", err)
		}
		err = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_ENCAP, unix.UDP_ENCAP_ESPINUDP)
		if err != nil {
			return fds, fmt.Errorf("take ESP out of UDP for %s: %w", a, err)
		}
		if err := unix.Bind(fd, where); err != nil {
			return fds, fmt.Errorf("open udp port %d for %s: %w", port, a, err)
		}
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// probeEncap tries the sockets in a namespace.
func probeEncap(n *nl.Namespace) error {
	err := n.Do(func() error {
		fds, err := encapSockets(0)
		closeAll(fds)
		return err
	})
	switch {
	case errors.Is(err, unix.ENOPROTOOPT):
		return missing("ESP in UDP (CONFIG_XFRM)", "Linux 5.8 for IPv6", err)
	case err != nil:
		return fmt.Errorf("probe driver %s: %w", Name, err)
	}
	return nil
}
