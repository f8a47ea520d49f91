package noisenet

import (
	"bytes"
	"context"
	"crypto/subtle"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/secure-overlay/secure-overlay/keys"
)

// maskedSecret is a secret in a form that a search of memory does not find.
func maskedSecret(s keys.TunnelSecret) (masked []byte) {
	s.Expose(func(raw []byte) {
		for _, c := range raw {
			masked = append(masked, c^0xff)
		}
	})
	return masked
}

// inMemory reports which secrets are somewhere in this process's memory.
func inMemory(t *testing.T, masked [][]byte) (found []bool) {
	t.Helper()
	maps := must(os.ReadFile("/proc/self/maps"))
	mem := must(os.Open("/proc/self/mem"))
	defer func() { _ = mem.Close() }()
	found = make([]bool, len(masked))
	buf := make([]byte, 1<<20)
	ones := bytes.Repeat([]byte{0xff}, len(buf))
	for line := range strings.Lines(string(maps)) {
		var from, to uint64
		var mode string
		// Mappings of more than 1 GiB are address space that is mostly
		// empty: reservations, and the race detector's own.
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); n != 3 || !strings.HasPrefix(mode, "rw") || to-from > 1<<30 {
			continue
		}
		for at := from; at < to; at += uint64(len(buf)) / 2 {
			n, _ := mem.ReadAt(buf[:min(uint64(len(buf)), to-at)], int64(at))
			subtle.XORBytes(buf[:n], buf[:n], ones) // so that no plain copy comes into being here
			for i, m := range masked {
				found[i] = found[i] || bytes.Contains(buf[:n], m)
			}
		}
	}
	return found
}

// TestTunnelSecretsLeaveNoTrace: after Wipe a tunnel secret is in no garbage on
// the heap, of neither end. Go gives no way to clear stacks, so those few that
// passed there last may remain until other calls overwrite them.
func TestTunnelSecretsLeaveNoTrace(t *testing.T) {
	const all, most = 40, 8
	a, b := pair(t, func(c *Config) {
		c.limits.bucketRate, c.limits.bucketBurst = 1000, 1000
		c.Agree = func(context.Context, Peer, []byte) ([]byte, func(keys.TunnelSecret), error) {
			return nil, func(s keys.TunnelSecret) { s.Wipe() }, nil
		}
	})
	var masked [][]byte
	for range all {
		got := must(a.Agree(testContext(t), b.node.id, nil))
		if got.Secret.ID() == 0 {
			t.Fatal("no secret")
		}
		masked = append(masked, maskedSecret(got.Secret))
		got.Secret.Wipe()
	}
	noStreams(t, a, b)
	kept := must(a.Agree(testContext(t), b.node.id, nil)).Secret
	found := inMemory(t, append(masked, maskedSecret(kept)))
	if !found[all] {
		t.Error("the search does not find a secret that is there")
	}
	n := 0
	for _, f := range found[:all] {
		if f {
			n++
		}
	}
	if n > most {
		t.Errorf("%d of %d wiped secrets are in memory", n, all)
	}
	t.Logf("%d of %d wiped secrets are in memory", n, all)
	runtime.KeepAlive(kept)
}
