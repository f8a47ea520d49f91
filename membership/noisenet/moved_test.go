package noisenet

import (
	"net/netip"
	"testing"
)

// TestMoved: streams of an address that the node has no more are closed, so that the
// next call takes a new one instead of waiting on a dead one; others stay.
func TestMoved(t *testing.T) {
	a, b := pair(t, func(c *Config) { c.Handler = echo })
	call := func() {
		t.Helper()
		if _, err := a.Call(testContext(t), b.node.id, []byte("q")); err != nil {
			t.Fatal(err)
		}
	}
	streams := func() int {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.conns)
	}
	call()
	a.Moved([]netip.Addr{netip.MustParseAddr("192.0.2.1")})
	if streams() == 0 {
		t.Error("a stream of an address that the node has is closed")
	}
	a.Moved([]netip.Addr{netip.MustParseAddr("127.0.0.1")})
	eventually(t, "the streams are closed", func() bool { return streams() == 0 })
	call()
}
