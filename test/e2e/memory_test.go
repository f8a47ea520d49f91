package e2e

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.zx2c4.com/wireguard/wgctrl"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// hunted is a key that must not be found any more.
type hunted struct {
	what     string // for people, without the key
	patterns map[string][]byte
}

// hunt describes a key in the forms in which it could lie around.
func hunt(what string, raw []byte) hunted {
	lower := hex.EncodeToString(raw)
	return hunted{what, map[string][]byte{
		"raw":        bytes.Clone(raw),
		"hex":        []byte(lower),
		"HEX":        []byte(strings.ToUpper(lower)),
		"base64":     []byte(base64.RawStdEncoding.EncodeToString(raw)),
		"base64 URL": []byte(base64.RawURLEncoding.EncodeToString(raw)),
	}}
}

// liveKeys reads the secrets that a node's tunnels have now: preshared keys from
// WireGuard, and the keys of ESP associations.
func liveKeys(t *testing.T, n *fleet.Node) []hunted {
	t.Helper()
	var found []hunted
	ns := secureNS(t, n)
	names, err := tunnelNames(ns)
	if err != nil {
		t.Fatal(err)
	}
	// The client keeps the namespace in which it was made.
	var client *wgctrl.Client
	if err := ns.Do(func() (err error) { client, err = wgctrl.New(); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	for _, name := range names {
		d, err := client.Device(name)
		if errors.Is(err, os.ErrNotExist) {
			continue // no WireGuard device
		}
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, hunt(fmt.Sprintf("private key of %s on %s", name, n.Name), d.PrivateKey[:]))
		for i, p := range d.Peers {
			if p.PresharedKey == ([32]byte{}) {
				t.Errorf("%s: peer %d of %s has no preshared key", n.Name, i, name)
				continue
			}
			found = append(found, hunt(fmt.Sprintf("preshared key %d of %s on %s", i, name, n.Name), p.PresharedKey[:]))
		}
	}
	esp, err := netlab.ESPKeys(n.Host.NS())
	if err != nil && emulated() {
		t.Fatal(err)
	}
	for _, k := range esp {
		k.Expose(func(raw []byte) {
			found = append(found, hunt(fmt.Sprintf("ESP key of SPI %08x on %s", k.SPI, n.Name), raw))
		})
	}
	return found
}

// searchNode looks for keys in everything that a node's programs have: their
// memory, their files, and what the agent answers. It says where it found which.
func searchNode(t *testing.T, n *fleet.Node, keys []hunted) []string {
	t.Helper()
	var found []string
	pids, err := n.Host.Processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		hits, err := searchMemory(pid, keys)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, hits...)
	}
	return append(append(found, searchFiles(t, n, keys)...), searchAnswers(t, n, keys)...)
}

// searchIn reports the keys that some bytes hold.
func searchIn(where string, b []byte, keys []hunted) []string {
	var found []string
	for _, k := range keys {
		for form, p := range k.patterns {
			if n := bytes.Count(b, p); n > 0 {
				found = append(found, fmt.Sprintf("%s: %s, %s, %d times", where, k.what, form, n))
			}
		}
	}
	return found
}

const (
	memoryChunk   = 4 << 20
	memoryOverlap = 128     // more than the longest pattern
	memoryMost    = 1 << 30 // larger mappings are the race detector's shadows of addresses, not of data
)

// searchMemory looks through all that a process can read of its own memory.
func searchMemory(pid int, keys []hunted) ([]string, error) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	cmdline, err := os.ReadFile(dir + "cmdline")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // ended meanwhile
	}
	name := fmt.Sprintf("memory of process %d (%s)", pid, strings.ReplaceAll(strings.TrimRight(string(cmdline), "\x00"), "\x00", " "))
	maps, err := os.Open(dir + "maps")
	if err != nil {
		return nil, err
	}
	defer func() { _ = maps.Close() }()
	mem, err := os.Open(dir + "mem")
	if err != nil {
		return nil, err
	}
	defer func() { _ = mem.Close() }()
	var found []string
	buf := make([]byte, memoryChunk)
	sc := bufio.NewScanner(maps)
	for sc.Scan() {
		var from, to uint64
		var perm string
		if _, err := fmt.Sscanf(sc.Text(), "%x-%x %s", &from, &to, &perm); err != nil {
			return nil, fmt.Errorf("parse maps of process %d: %w", pid, err)
		}
		if perm[0] != 'r' || to-from > memoryMost || strings.HasPrefix(sc.Text()[len(sc.Text())-5:], "[vv") {
			continue
		}
		for at := from; at < to; at += memoryChunk - memoryOverlap {
			n, _ := mem.ReadAt(buf[:min(memoryChunk, to-at)], int64(at)) // special mappings cannot be read
			found = append(found, searchIn(fmt.Sprintf("%s at %x", name, at), buf[:n], keys)...)
		}
	}
	return found, sc.Err()
}

// searchFiles looks through logs, data and runtime folder of a node.
func searchFiles(t *testing.T, n *fleet.Node, keys []hunted) []string {
	t.Helper()
	var found []string
	files := 0
	err := filepath.WalkDir(filepath.Dir(n.LogPath()), func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil // removed meanwhile, or no file
		}
		raw, err := os.ReadFile(path)
		if err == nil {
			files++
			found = append(found, searchIn("file "+path, raw, keys)...)
		}
		return nil
	})
	if err != nil || files < 3 {
		t.Fatalf("search files of %s: %d files, %v", n.Name, files, err)
	}
	return found
}

// searchAnswers looks through what the agent tells its clients.
func searchAnswers(t *testing.T, n *fleet.Node, keys []hunted) []string {
	t.Helper()
	var found []string
	look := func(what string, answer any, err error) {
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(answer)
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, searchIn("answer of "+what, raw, keys)...)
	}
	ctx, c := t.Context(), n.Client()
	status, err := c.Status(ctx)
	look("status", status, err)
	epochs, err := c.Keys(ctx)
	look("keys", epochs, err)
	history, err := c.KeyHistory(ctx)
	look("key history", history, err)
	members, err := c.Members(ctx)
	look("members", members, err)
	networks, err := c.Networks(ctx)
	look("networks", networks, err)
	endpoints, err := c.Endpoints(ctx)
	look("endpoints", endpoints, err)
	return found
}

// TestOldKeysAreGone reads the keys of an epoch while it lives, and looks for them
// everywhere after it has ended.
func TestOldKeysAreGone(t *testing.T) {
	for _, driver := range drivers() {
		if driver == "ipsec-userspace" {
			continue // its workers tell no key, so there is nothing to look for
		}
		t.Run(driver, func(t *testing.T) {
			ctx, f := startFor(t, suited(), 2, 2, "")
			toDriver(t, ctx, f, driver)
			l := startLoad(t, ctx, f, 100, 200)
			var old []hunted
			for _, n := range f.Nodes {
				old = append(old, liveKeys(t, n)...)
			}
			if len(old) < 2*len(f.Nodes) {
				t.Fatalf("read %d keys, want a pair's at each end", len(old))
			}
			// The control: this process has just read them.
			own, err := searchMemory(os.Getpid(), old)
			if err != nil || len(own) < len(old) {
				t.Fatalf("control: the search finds %d of %d keys in this process: %v", len(own), len(old), err)
			}
			workers, agents := 0, 0
			for _, n := range f.Nodes {
				for _, place := range searchNode(t, n, old) {
					if strings.Contains(place, fmt.Sprintf("process %d ", n.PID())) {
						agents++
					} else {
						workers++
					}
				}
			}
			t.Logf("%d keys of the living epoch, found in %d places in agents and %d in workers", len(old), agents, workers)
			if driver == "userspace" && workers == 0 {
				t.Error("control: the workers use the keys, and the search does not find them there")
			}
			var last ids.Epoch
			for range 2 {
				r, _ := rotate(t, ctx, f.Nodes[0], "")
				last = r.To
			}
			if err := f.WaitEpoch(ctx, last); err != nil {
				t.Fatal(err)
			}
			for _, n := range f.Nodes {
				for _, place := range searchNode(t, n, old) {
					t.Errorf("after the epoch's end, %s: %s", n.Name, place)
				}
			}
			l.finish(ctx)
		})
	}
}
