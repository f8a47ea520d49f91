package netlab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// Box is one network namespace of a lab: a host, a container or the switch.
type Box struct {
	name string
	path string
	ns   *nl.Namespace
}

// Name returns the name the namespace was made with.
func (b *Box) Name() string { return b.name }

// NS returns the namespace, valid until the lab is closed.
func (b *Box) NS() *nl.Namespace { return b.ns }

// Path returns the bind mount of the namespace.
func (b *Box) Path() string { return b.path }

// Sysctl writes a value of /proc/sys inside the namespace. The key is written
// with slashes: "net/ipv4/ip_forward".
func (b *Box) Sysctl(key, value string) error {
	err := b.ns.Do(func() error {
		return os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0o644)
	})
	if err != nil {
		return fmt.Errorf("set sysctl %s in %s: %w", key, b.name, err)
	}
	return nil
}

// prepare sets up what every namespace of a lab has: no waiting for duplicate
// address detection, and loopback up.
func (b *Box) prepare() error {
	for _, conf := range []string{"all", "default"} {
		key := "net/ipv6/conf/" + conf + "/accept_dad"
		// A kernel without IPv6 has no such file; then there is nothing to wait for.
		if err := b.Sysctl(key, "0"); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	h, err := b.ns.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	return linkUp(h, "lo")
}

// Processes lists the processes that run in the namespace, except the caller.
func (b *Box) Processes() ([]int, error) {
	want, err := b.ns.ID()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		var st unix.Stat_t
		if unix.Stat("/proc/"+e.Name()+"/ns/net", &st) != nil {
			continue // ended meanwhile, or a kernel thread's
		}
		if (nl.ID{Dev: st.Dev, Ino: st.Ino}) == want && !isZombie(e.Name()) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// isZombie reports whether a process has ended and waits for its parent.
func isZombie(pid string) bool {
	raw, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return true
	}
	_, rest, _ := strings.Cut(string(raw), ") ")
	return strings.HasPrefix(rest, "Z") || strings.HasPrefix(rest, "X")
}

// killProcesses ends what runs in the namespace, including workers that
// detached from the process that the lab started. The namespace was made by
// the lab, so nothing else has business in it.
func (b *Box) killProcesses() error {
	deadline := time.Now().Add(5 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		pids, err := b.Processes()
		if err != nil {
			return err
		}
		if len(pids) == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("end processes %v in %s: still running after 5 s", pids, b.name)
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		<-tick.C
	}
}

// remove ends the namespace's processes and removes it.
func (b *Box) remove() error {
	return errors.Join(b.killProcesses(), b.ns.Close(), nl.RemoveNamespace(b.path))
}
