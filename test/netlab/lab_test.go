package netlab

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

func TestLabAddresses(t *testing.T) {
	l := newLab(t, "addr")
	a := newHost(t, l, "a")
	b := newHost(t, l, "b", V4Only())
	c := newHost(t, l, "c", V6Only(), WithMTU(9000))
	got := []netip.Addr{a.V4(), a.V6(), b.Addr(), b.V6(), c.V4(), c.Addr()}
	want := []netip.Addr{
		netip.MustParseAddr("198.18.0.1"), netip.MustParseAddr("fd00:198:18::1"),
		netip.MustParseAddr("198.18.0.2"), {}, {}, netip.MustParseAddr("fd00:198:18::3"),
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(x, y netip.Addr) bool { return x == y })); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
	snap, err := Snapshot(c.NS())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(snap, "link eth0 type veth mtu 9000 up") {
		t.Errorf("host c:\n%s", snap)
	}
	if strings.Contains(snap, "default") {
		t.Errorf("host c has a default route:\n%s", snap)
	}
	if _, err := l.Host("a"); !errors.Is(err, os.ErrExist) {
		t.Errorf("second host a: %v", err)
	}
	if _, err := l.Container("No/Slash"); err == nil {
		t.Error("a name with a slash was taken")
	}
}

func TestLabSetMTUAndCut(t *testing.T) {
	l := newLab(t, "cut")
	a, b := newHost(t, l, "a"), newHost(t, l, "b")
	ctx := within(t, 30*time.Second)
	ping := func() PingResult {
		t.Helper()
		r, err := Ping(ctx, a.NS(), b.V4(), PingOptions{Timeout: 200 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if r := ping(); r.Received != 1 {
		t.Fatalf("before the cut: %+v", r)
	}
	if err := b.Disconnect(); err != nil {
		t.Fatal(err)
	}
	if r := ping(); r.Received != 0 {
		t.Errorf("while cut: %+v", r)
	}
	if err := b.Connect(); err != nil {
		t.Fatal(err)
	}
	if err := waitFor(ctx, func() bool { return ping().Received == 1 }, func() string { return "no answer" }); err != nil {
		t.Errorf("after the cut: %v", err)
	}
	if err := a.SetMTU(1400); err != nil {
		t.Fatal(err)
	}
	snap, err := Snapshot(a.NS())
	if err != nil || !strings.Contains(snap, "link eth0 type veth mtu 1400") {
		t.Errorf("after SetMTU: %v\n%s", err, snap)
	}
}

func TestLabCloseEndsEverything(t *testing.T) {
	l := newLab(t, "close")
	a := newHost(t, l, "a")
	if _, err := l.CaptureAll(Any()); err != nil {
		t.Fatal(err)
	}
	cmd := child(t, a.Box, "wait")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waited := make(chan error, 1)
	go func() { waited <- cmd.Wait() }()
	if pids, err := a.Processes(); err != nil || len(pids) != 1 || pids[0] != cmd.Process.Pid {
		t.Fatalf("processes = %v, %v; want %d", pids, err, cmd.Process.Pid)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := <-waited; !errors.As(err, &exit) {
		t.Errorf("the process ended with %v, want killed", err)
	}
	if _, err := os.Stat(l.Dir()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("folder: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
}

func TestCommandRunsInside(t *testing.T) {
	l := newLab(t, "cmd")
	box, err := l.Container("c1")
	if err != nil {
		t.Fatal(err)
	}
	id, err := box.NS().ID()
	if err != nil {
		t.Fatal(err)
	}
	out, err := child(t, box, "inode").Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(string(out)); got != strconv.FormatUint(id.Ino, 10) {
		t.Errorf("the child's namespace is %s, want %d", got, id.Ino)
	}
	if _, err := child(t, box, "fail").CombinedOutput(); err == nil {
		t.Error("a failing program succeeded")
	}
}

func TestSnapshotShowsChanges(t *testing.T) {
	l := newLab(t, "snap")
	a := newHost(t, l, "a")
	before, err := Snapshot(a.NS())
	if err != nil {
		t.Fatal(err)
	}
	h, err := a.NS().Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	br := &netlink.Bridge{LinkAttrs: named("extra")}
	if err := h.LinkAdd(br); err != nil {
		t.Fatal(err)
	}
	route := &netlink.Route{Dst: netlink.NewIPNet([]byte{203, 0, 113, 1}), Type: unix.RTN_UNREACHABLE}
	if err := h.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	changed, err := Snapshot(a.NS())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"link extra type bridge", "route 203.0.113.1/32"} {
		if !strings.Contains(changed, want) || strings.Contains(before, want) {
			t.Errorf("%q is not the difference:\n%s", want, cmp.Diff(before, changed))
		}
	}
	if err := h.LinkDel(br); err != nil {
		t.Fatal(err)
	}
	if err := h.RouteDel(route); err != nil {
		t.Fatal(err)
	}
	after, err := Snapshot(a.NS())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("undone changes still show:\n%s", diff)
	}
}

func TestNamespaceMounts(t *testing.T) {
	l := newLab(t, "mounts")
	got, err := NamespaceMounts(l.Dir())
	if err != nil || len(got) != 1 || got[0] != l.Switch().Path() {
		t.Errorf("mounts = %v, %v", got, err)
	}
	if ns, err := nl.OpenNamespace(got[0]); err != nil {
		t.Error(err)
	} else {
		_ = ns.Close()
	}
}
