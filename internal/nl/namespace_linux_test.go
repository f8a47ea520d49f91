package nl

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func requireRoot(t *testing.T) {
	t.Helper()
	if unix.Geteuid() != 0 {
		t.Fatal("this test makes network namespaces and needs root")
	}
}

func TestNamespaceLifecycle(t *testing.T) {
	requireRoot(t)
	path := filepath.Join(t.TempDir(), "ns", "secure")
	if _, err := OpenNamespace(path); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("open before create: %v", err)
	}
	ns, created, err := EnsureNamespace(path)
	if err != nil || !created {
		t.Fatalf("ensure = %v, %v", created, err)
	}
	t.Cleanup(func() { _ = RemoveNamespace(path) })
	defer func() { _ = ns.Close() }()
	if _, err := CreateNamespace(path); !errors.Is(err, os.ErrExist) {
		t.Errorf("second create: %v", err)
	}
	again, created, err := EnsureNamespace(path)
	if err != nil || created {
		t.Fatalf("second ensure = %v, %v", created, err)
	}
	defer func() { _ = again.Close() }()
	a, _ := ns.ID()
	if b, _ := again.ID(); a != b {
		t.Errorf("one path, two identities: %v, %v", a, b)
	}
	here, err := CurrentNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = here.Close() }()
	if h, _ := here.ID(); h == a {
		t.Error("the new namespace is the current one")
	}

	h, err := ns.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil || len(links) != 1 || links[0].Attrs().Name != "lo" {
		t.Fatalf("links of a new namespace = %v, %v", links, err)
	}
	if _, err := h.LinkByName("nosuch"); !IsNotExist(err) {
		t.Errorf("missing link: %v", err)
	}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "d0"}}
	if err := h.LinkAdd(bridge); err != nil {
		t.Fatal(err)
	}
	if err := h.LinkAdd(bridge); !IsExist(err) {
		t.Errorf("second add: %v", err)
	}

	var inside ID
	if err := ns.Do(func() error {
		cur, err := CurrentNamespace()
		if err != nil {
			return err
		}
		defer func() { _ = cur.Close() }()
		inside, err = cur.ID()
		return err
	}); err != nil || inside != a {
		t.Errorf("Do ran in %v, want %v: %v", inside, a, err)
	}

	if err := RemoveNamespace(path); err != nil {
		t.Fatal(err)
	}
	if err := RemoveNamespace(path); err != nil {
		t.Errorf("second remove: %v", err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("file is still there: %v", err)
	}
}

func TestOpenNamespaceRefusesPlainFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenNamespace(path); !errors.Is(err, ErrNotNamespace) {
		t.Errorf("plain file: %v", err)
	}
	if _, err := OpenNamespace("/proc/self/ns/mnt"); !errors.Is(err, ErrNotNamespace) {
		t.Errorf("mount namespace: %v", err)
	}
}

// TestLastingID makes a namespace at a path again and again. The kernel gives
// the new one the inode number of the old one more often than not; the lasting
// identity must tell them apart all the same.
func TestLastingID(t *testing.T) {
	requireRoot(t)
	path := filepath.Join(t.TempDir(), "ns")
	seen := map[ID]bool{}
	for range 10 {
		ns, err := CreateNamespace(path)
		if err != nil {
			t.Fatal(err)
		}
		id, err := ns.LastingID()
		again, againErr := ns.LastingID()
		short, shortErr := ns.ID()
		if err := errors.Join(err, againErr, shortErr, ns.Close(), RemoveNamespace(path)); err != nil {
			t.Fatal(err)
		}
		if id != again || !id.Is(short) || !short.Is(id) {
			t.Errorf("one namespace, several identities: %v, %v, %v", id, again, short)
		}
		if seen[id] {
			t.Errorf("identity %v was given twice", id)
		}
		for other := range seen {
			if id.Is(other) {
				t.Errorf("%v passes for %v", id, other)
			}
		}
		seen[id] = true
	}
}

// TestMainThreadStaysHome enters a namespace from many goroutines: whichever
// threads they get, the process as a whole must stay where it was.
func TestMainThreadStaysHome(t *testing.T) {
	requireRoot(t)
	path := filepath.Join(t.TempDir(), "ns")
	ns, err := CreateNamespace(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = RemoveNamespace(path) })
	defer func() { _ = ns.Close() }()
	var group sync.WaitGroup
	for range 200 {
		group.Go(func() {
			if err := ns.Do(func() error {
				if unix.Gettid() == unix.Getpid() {
					return errors.New("ran on the main thread")
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	process, err := OpenNamespace("/proc/self/ns/net") // of the main thread
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = process.Close() }()
	got, _ := process.ID()
	if inside, _ := ns.ID(); got == inside {
		t.Error("the main thread is in the foreign namespace")
	}
}
