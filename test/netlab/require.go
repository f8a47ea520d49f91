package netlab

import (
	"fmt"
	"os"
	"os/exec"
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
	FeatureXfrm      = "xfrm"      // the kernel has xfrm interfaces
	FeatureVM        = "vm"        // a virtual machine can be emulated
)

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
	err := probe(feature)
	if err == nil {
		return
	}
	if slices.Contains(strings.Split(os.Getenv(RequireEnv), ","), feature) {
		t.Fatalf("%s is required here (%s) but missing: %v", feature, RequireEnv, err)
		return
	}
	t.Skipf("needs %s: %v", feature, err)
}

// probe tries a feature out.
func probe(feature string) error {
	switch feature {
	case FeatureNetns:
		return inThrowaway(func(*nl.Handle) error { return nil })
	case FeatureWireGuard:
		return inThrowaway(func(h *nl.Handle) error {
			return h.LinkAdd(&netlink.Wireguard{LinkAttrs: named("probe")})
		})
	case FeatureXfrm:
		return inThrowaway(func(h *nl.Handle) error {
			return h.LinkAdd(&netlink.Xfrmi{LinkAttrs: named("probe"), Ifid: 1})
		})
	case FeatureVM:
		_, err := exec.LookPath("qemu-system-x86_64")
		return err
	default:
		return fmt.Errorf("unknown feature %q", feature)
	}
}

// inThrowaway runs fn with a handle on a namespace that is gone afterwards.
func inThrowaway(fn func(*nl.Handle) error) error {
	if unix.Geteuid() != 0 {
		return fmt.Errorf("make a network namespace: not root")
	}
	lab, err := os.MkdirTemp("", "netlab-probe-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(lab) }()
	path := lab + "/ns"
	ns, err := nl.CreateNamespace(path)
	if err != nil {
		return err
	}
	defer func() { _ = nl.RemoveNamespace(path) }()
	defer func() { _ = ns.Close() }()
	h, err := ns.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	return fn(h)
}

// named returns link attributes with a name and the library's defaults.
func named(name string) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Name = name
	return a
}
