package netlab

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// RequireEnv names the environment variable that lists, separated by commas,
// the features whose absence is a failure instead of a skip.
const RequireEnv = "SECURE_OVERLAY_TEST_REQUIRE"

// Features that Require knows.
const (
	FeatureNetns     = "netns"     // network namespaces can be made: root
	FeatureWireGuard = "wireguard" // the kernel has WireGuard
	FeatureXfrm      = "xfrm"      // the kernel has xfrm interfaces and ESP with AES-GCM for both families
	FeatureNetem     = "netem"     // the kernel can delay and lose packets on purpose
	FeatureDummy     = "dummy"     // the kernel has dummy links
	FeatureVM        = "vm"        // test/vm may download a kernel and spend minutes: only when listed
	FeatureClock     = "clock"     // the system clock may be set: inside the machine of test/vm, and nowhere else
)

// GuestWord is on the kernel's command line in the machine of test/vm. To the
// kernel it is a parameter of a module that there is not.
const GuestWord = "secure_overlay_test.guest=1"

// TestingT is what Require needs of a *testing.T.
type TestingT interface {
	Helper()
	Fatalf(format string, args ...any)
	Skipf(format string, args ...any)
}

// Require lets a test go on only if this machine has a feature. Without it
// the test is skipped, or fails if SECURE_OVERLAY_TEST_REQUIRE lists the
// feature: on a machine that is meant to run a test, a skip would be a hole
// that looks green. It is the only way for a test to skip itself.
func Require(t TestingT, feature string) {
	t.Helper()
	listed := slices.Contains(strings.Split(os.Getenv(RequireEnv), ","), feature)
	err := probe(feature, listed)
	switch {
	case err == nil:
	case listed:
		t.Fatalf("%s is required here (%s) but missing: %v", feature, RequireEnv, err)
	default:
		t.Skipf("needs %s: %v", feature, err)
	}
}

// probe tries a feature out.
func probe(feature string, listed bool) error {
	switch feature {
	case FeatureNetns:
		return inThrowaway(func(*nl.Handle) error { return nil })
	case FeatureWireGuard:
		return addLink(&netlink.Wireguard{LinkAttrs: named("probe")})
	case FeatureDummy:
		return addLink(&netlink.Dummy{LinkAttrs: named("probe")})
	case FeatureXfrm:
		return probeXfrm()
	case FeatureNetem:
		return inThrowaway(func(h *nl.Handle) error {
			lo, err := h.LinkByName("lo")
			if err != nil {
				return err
			}
			attrs := netlink.QdiscAttrs{LinkIndex: lo.Attrs().Index, Handle: netlink.MakeHandle(1, 0), Parent: netlink.HANDLE_ROOT}
			return h.QdiscAdd(netlink.NewNetem(attrs, netlink.NetemQdiscAttrs{Latency: 1}))
		})
	case FeatureVM:
		if !listed {
			return fmt.Errorf("%s does not list it", RequireEnv)
		}
		return nil
	case FeatureClock:
		return inGuest()
	default:
		return fmt.Errorf("unknown feature %q", feature)
	}
}

// inGuest says why this is not the machine of test/vm, of which nothing but tests
// ever sees the clock. That takes all of: the word with which only test/vm boots a
// kernel; its guest as the first process; a root that is the initramfs itself. A
// host has none of them, and a container sees its host's command line.
func inGuest() error {
	not := func(format string, args ...any) error {
		return fmt.Errorf("this is not the virtual machine of test/vm: "+format, args...)
	}
	raw, err := os.ReadFile("/proc/cmdline")
	if err != nil || !slices.Contains(strings.Fields(string(raw)), GuestWord) {
		return not("its kernel was booted without %s", GuestWord)
	}
	if first, err := os.Readlink("/proc/1/exe"); err != nil || first != "/init" {
		return not("its first process is not /init but %s", first)
	}
	var root unix.Statfs_t
	if err := unix.Statfs("/", &root); err != nil || root.Type != unix.TMPFS_MAGIC && root.Type != unix.RAMFS_MAGIC {
		return not("its root is no initramfs")
	}
	return nil
}

// addLink tries a link type out.
func addLink(link netlink.Link) error {
	return inThrowaway(func(h *nl.Handle) error { return h.LinkAdd(link) })
}

// probeXfrm tries an xfrm interface and one security association per family.
func probeXfrm() error {
	if err := addLink(&netlink.Xfrmi{LinkAttrs: named("probe"), Ifid: 1}); err != nil {
		return fmt.Errorf("add xfrm interface: %w", err)
	}
	return inNamespace(func(ns *nl.Namespace) error {
		return ns.Do(func() error {
			h, err := netlink.NewHandle(unix.NETLINK_XFRM)
			if err != nil {
				return err
			}
			defer func() { _ = h.Close() }()
			for _, addr := range []string{"198.18.0.1", "fd00:198:18::1"} {
				ip := net.ParseIP(addr)
				// Key and salt are all zero: nothing is ever sent with them.
				sa := &netlink.XfrmState{
					Src: ip, Dst: ip, Proto: netlink.XFRM_PROTO_ESP, Mode: netlink.XFRM_MODE_TUNNEL,
					Spi: 0x1000, Aead: &netlink.XfrmStateAlgo{Name: "rfc4106(gcm(aes))", Key: make([]byte, 36), ICVLen: 128},
				}
				if err := h.XfrmStateAdd(sa); err != nil {
					return fmt.Errorf("add ESP association for %s: %w", addr, err)
				}
			}
			return nil
		})
	})
}

// inThrowaway runs fn with a handle on a namespace that is gone afterwards.
func inThrowaway(fn func(*nl.Handle) error) error {
	return inNamespace(func(ns *nl.Namespace) error {
		h, err := ns.Handle()
		if err != nil {
			return err
		}
		defer h.Close()
		return fn(h)
	})
}

// inNamespace runs fn with a namespace that is gone afterwards.
func inNamespace(fn func(*nl.Namespace) error) error {
	if unix.Geteuid() != 0 {
		return fmt.Errorf("make a network namespace: not root")
	}
	dir, err := os.MkdirTemp("", "netlab-probe-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	path := dir + "/ns"
	ns, err := nl.CreateNamespace(path)
	if err != nil {
		return err
	}
	defer func() { _ = nl.RemoveNamespace(path) }()
	defer func() { _ = ns.Close() }()
	return fn(ns)
}

// named returns link attributes with a name and the library's defaults.
func named(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}
