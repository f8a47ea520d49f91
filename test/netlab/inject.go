package netlab

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// Injector sends packets that an attacker in the namespace could send: any
// source address, any port, any frame. It is used by one goroutine.
type Injector struct {
	raw4, raw6, frames int
	ns                 *nl.Namespace
}

// OpenInjector opens the raw sockets in ns. The caller calls Close.
func OpenInjector(ns *nl.Namespace) (*Injector, error) {
	in := &Injector{raw4: -1, raw6: -1, frames: -1, ns: ns}
	err := ns.Do(func() error {
		var err error
		// IPPROTO_RAW: the packet carries its own IP header (raw(7), ipv6(7)).
		if in.raw4, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
			return err
		}
		if in.raw6, err = unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
			return err
		}
		in.frames, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open injector: %w", err), in.Close())
	}
	return in, nil
}

// UDP sends one UDP packet by the namespace's routes with any source address.
func (in *Injector) UDP(src, dst netip.AddrPort, payload []byte) error {
	if src.Addr().Is4() != dst.Addr().Is4() {
		return fmt.Errorf("inject from %s to %s: two address families", src, dst)
	}
	var err error
	packet := UDPPacket(src, dst, payload)
	if dst.Addr().Is4() {
		err = unix.Sendto(in.raw4, packet, 0, &unix.SockaddrInet4{Addr: dst.Addr().As4()})
	} else {
		err = unix.Sendto(in.raw6, packet, 0, &unix.SockaddrInet6{Addr: dst.Addr().As16()})
	}
	if err != nil {
		return fmt.Errorf("inject from %s to %s: %w", src, dst, err)
	}
	return nil
}

// Frame sends a frame as it is on a link of the namespace.
func (in *Injector) Frame(link string, frame []byte) error {
	var index int
	if err := in.ns.Do(func() (err error) { index, err = linkIndex(link); return err }); err != nil {
		return fmt.Errorf("inject frame: %w", err)
	}
	if err := unix.Sendto(in.frames, frame, 0, &unix.SockaddrLinklayer{Ifindex: index}); err != nil {
		return fmt.Errorf("inject frame on %s: %w", link, err)
	}
	return nil
}

// Close releases the sockets.
func (in *Injector) Close() error {
	var errs []error
	for _, fd := range []*int{&in.raw4, &in.raw6, &in.frames} {
		if *fd >= 0 {
			errs = append(errs, unix.Close(*fd))
			*fd = -1
		}
	}
	return errors.Join(errs...)
}
