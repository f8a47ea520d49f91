package ipsec_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	rtnl "github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel/tunneltest"
)

// kernel is the tests' own way to a namespace's associations and policies: the
// netlink library, and so nothing of what is tested.
func kernel(ns *nl.Namespace) (*netlink.Handle, error) {
	return netlink.NewHandleAt(netns.NsHandle(ns.FD()), unix.NETLINK_XFRM, unix.NETLINK_ROUTE)
}

// leftovers lists associations and policies in the host namespaces, and files of
// holders.
func leftovers(hosts []*tunneltest.Host) ([]string, error) {
	var out []string
	for i, host := range hosts {
		files, err := os.ReadDir(host.Env.RuntimeDir)
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			out = append(out, fmt.Sprintf("host %d: %s", i, f.Name()))
		}
		k, err := kernel(host.Env.Host)
		if err != nil {
			return nil, err
		}
		states, err := k.XfrmStateList(netlink.FAMILY_ALL)
		policies, perr := k.XfrmPolicyList(netlink.FAMILY_ALL)
		_ = k.Close()
		if err := errors.Join(err, perr); err != nil {
			return nil, err
		}
		for _, s := range states {
			out = append(out, fmt.Sprintf("host %d: association %08x", i, uint32(s.Spi)))
		}
		for _, p := range policies {
			out = append(out, fmt.Sprintf("host %d: policy %v to %v", i, p.Src, p.Dst))
		}
	}
	return out, nil
}

// loosen takes the inner source out of the policies and associations that a
// host sends by.
func loosen(t *testing.T, h *tunneltest.Host, _ string) {
	t.Helper()
	k := must(kernel(h.Env.Host))(t)
	defer func() { _ = k.Close() }()
	anywhere := &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	own := net.IP(h.Inner().AsSlice())
	for _, p := range must(k.XfrmPolicyList(netlink.FAMILY_V6))(t) {
		if p.Dir != netlink.XFRM_DIR_OUT || !p.Src.IP.Equal(own) {
			continue
		}
		ok(t, k.XfrmPolicyDel(&p))
		p.Src, p.Index = anywhere, 0
		ok(t, k.XfrmPolicyAdd(&p))
		// The driver does not take it for its own.
		t.Cleanup(func() {
			k := must(kernel(h.Env.Host))(t)
			defer func() { _ = k.Close() }()
			ok(t, k.XfrmPolicyDel(&p))
		})
	}
	for _, s := range must(k.XfrmStateList(netlink.FAMILY_ALL))(t) {
		if s.Selector == nil || !s.Selector.Src.IP.Equal(own) {
			continue
		}
		ok(t, k.XfrmStateDel(&s))
		s.Selector.Src, s.ESN, s.ReplayWindow, s.Replay = anywhere, true, 1024, nil
		ok(t, k.XfrmStateAdd(&s))
	}
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func must[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		ok(t, err)
		return v
	}
}

// watch listens to what the kernel tells of changes to associations and
// policies of a namespace. The function it returns reads how many there were
// since, and waits for none.
func watch(ns *nl.Namespace) (func() (int, error), error) {
	s, err := rtnl.SubscribeAt(netns.NsHandle(ns.FD()), netns.None(), unix.NETLINK_XFRM, rtnl.XFRMNLGRP_SA, rtnl.XFRMNLGRP_POLICY)
	if err != nil {
		return nil, err
	}
	return func() (int, error) {
		n, buf := 0, make([]byte, 65536)
		for {
			size, _, err := unix.Recvfrom(s.GetFd(), buf, unix.MSG_DONTWAIT)
			if errors.Is(err, unix.EAGAIN) {
				return n, nil
			}
			if err != nil {
				return n, err
			}
			n += min(size, 1)
		}
	}, nil
}
