package tun

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/gso"
)

const probeName = "soprobe"

// Probe reports whether the machine has what a link needs, in either form, to the driver with a
// name: it opens one in a namespace that goes with the probe.
func Probe(ctx context.Context, driver string) error {
	err := nl.InScratch(func(*nl.Namespace, *nl.Handle) error {
		fd, err := openTUN(probeName)
		if err != nil {
			return err
		}
		return unix.Close(fd)
	})
	if err == nil || tryPair(ctx) == nil { // as where TUN devices are missing, or forbidden
		return nil
	}
	for _, missing := range []error{unix.ENOENT, unix.ENXIO, unix.ENODEV} {
		if errors.Is(err, missing) {
			return &tunnel.UnsupportedError{
				Driver: driver, Feature: "TUN devices (CONFIG_TUN and " + clonePath + ")", Err: err,
			}
		}
	}
	return fmt.Errorf("probe driver %s: %w", driver, err)
}

// Slower says, as an *tunnel.UnsupportedError, that the machine lacks what Pair
// needs, or that it is not to be used; nil: it has it.
func Slower(ctx context.Context, driver string, single bool) error {
	slow := &tunnel.UnsupportedError{
		Driver: driver, Feature: "taking joined VXLAN datagrams from packet sockets, without which it is several times slower,", Since: "Linux 6.8.5",
	}
	if single {
		return slow
	}
	slow.Err = tryPair(ctx)
	switch {
	case slow.Err == nil:
		return nil
	case busy(slow.Err):
		return fmt.Errorf("probe driver %s: %w", driver, slow.Err)
	}
	return slow
}

// FormFor returns the fastest form that the machine has, to the driver with a name.
func FormFor(ctx context.Context, driver string, single bool) (Form, error) {
	var slow *tunnel.UnsupportedError
	switch err := Slower(ctx, driver, single); {
	case err == nil:
		return Pair, nil
	case errors.As(err, &slow):
		return Single, nil
	default:
		return "", err
	}
}

// busy reports whether an error says that there was too little of something, or too little time,
// which may be better later. Anything else, such as a rule that forbids packet sockets, is how the machine is.
func busy(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// What samples are for, and whom they are from: addresses for documentation (RFC 3849).
const (
	sampleVNI  = 77
	samplePort = 4789
)

func sampleFrom() netip.Addr { return netip.MustParseAddr("2001:db8::1") }
func sampleTo() netip.Addr   { return netip.MustParseAddr("2001:db8::2") }

func sample() []byte { return gso.Sample(sampleFrom(), sampleTo(), samplePort, sampleVNI) }

// tryTime is how long it may take a kernel to let a packet through.
const tryTime = 2 * time.Second

// errRefused: VXLAN has not taken what was joined.
var errRefused = errors.New("VXLAN drops joined datagrams")

// tryPair opens a pair in a namespace of its own and lets two datagrams arrive as one: Linux takes that
// from packet sockets since 6.2, but hands the two to VXLAN as one, which drops them, before 6.8.5 and
// stable kernels of that time.
func tryPair(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, tryTime, errRefused)
	defer cancel()
	return nl.InScratch(func(ns *nl.Namespace, h *nl.Handle) error {
		p, err := openPair(ns, Options{Name: probeName, Alias: probeName}, nil)
		if err != nil {
			return err
		}
		defer func() { _ = p.file.Close() }()
		vxlan, err := receiver(ctx, ns, h)
		if err != nil {
			return fmt.Errorf("make a VXLAN device: %w", err)
		}
		samples := [][]byte{sample(), sample()}
		if _, err := p.Write(samples, 0); err != nil {
			return err
		}
		// It has arrived already, unless the kernel leaves that to a thread.
		for {
			l, err := h.LinkByIndex(vxlan)
			if err != nil {
				return fmt.Errorf("read the VXLAN device: %w", err)
			}
			if s := l.Attrs().Statistics; s != nil && s.RxPackets == uint64(len(samples)) {
				return nil
			}
			select {
			case <-ctx.Done():
				return context.Cause(ctx)
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
}

// receiver makes the VXLAN device that samples are for, and returns its index.
func receiver(ctx context.Context, ns *nl.Namespace, h *nl.Handle) (int, error) {
	on := []nl.Sysctl{{Key: "ipv6/conf/all/disable_ipv6", Value: "0"}}
	if _, err := ns.SetSysctls(on); err != nil {
		return 0, err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "soprobe0"
	vxlan := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: sampleVNI, Port: samplePort, SrcAddr: sampleTo().AsSlice()}
	if err := h.LinkAdd(vxlan); err != nil {
		return 0, err
	}
	lo, err := up(h, "lo") // first: an address on a link that is down gets no route
	if err != nil {
		return 0, err
	}
	to := &netlink.Addr{IPNet: &net.IPNet{IP: sampleTo().AsSlice(), Mask: net.CIDRMask(128, 128)}, Flags: unix.IFA_F_NODAD}
	if err := h.AddrAdd(lo, to); err != nil {
		return 0, err
	}
	for _, name := range []string{probeName, attrs.Name} {
		if _, err := up(h, name); err != nil {
			return 0, err
		}
	}
	return vxlan.Index, h.WaitLocal(ctx, sampleTo())
}

func up(h *nl.Handle, name string) (netlink.Link, error) {
	l, err := h.LinkByName(name)
	if err != nil {
		return nil, err
	}
	return l, h.LinkSetUp(l)
}
