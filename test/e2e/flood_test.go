package e2e

import (
	"context"
	"crypto/rand"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/time/rate"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// flood opens connections to addr out of a namespace and writes garbage into
// them until ctx ends. It returns how many there were.
func flood(ctx context.Context, ns *nl.Namespace, addr netip.AddrPort, perSecond int) (opened int64) {
	limit := rate.NewLimiter(rate.Limit(perSecond), perSecond/100+1)
	var n atomic.Int64
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			_ = ns.Do(func() error { // one thread each: a socket belongs where it is made
				garbage := make([]byte, 120)
				for limit.Wait(ctx) == nil {
					if knock(ctx, addr, garbage) {
						n.Add(1)
					}
				}
				return nil
			})
		})
	}
	wg.Wait()
	return n.Load()
}

// knock makes one connection: every other one begins as a member's or a
// newcomer's would.
func knock(ctx context.Context, addr netip.AddrPort, garbage []byte) bool {
	d := net.Dialer{Timeout: time.Second}
	c, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return false
	}
	defer func() { _ = c.Close() }()
	rand.Read(garbage)
	if garbage[0]&1 == 0 {
		copy(garbage, []byte{'S', 'O', 1, 2, 1 + garbage[1]&1, 0})
	}
	_ = c.SetDeadline(time.Now().Add(time.Second))
	_, _ = c.Write(garbage)
	// No TIME_WAIT: that would end the flood by itself.
	_ = c.(*net.TCPConn).SetLinger(0)
	return true
}

// TestHandshakeFlood opens garbage connections to every node, while a node joins
// and others watch each other: the join completes, nobody is suspected, and what
// flows goes on flowing.
func TestHandshakeFlood(t *testing.T) {
	perSecond, long, patience := 5000, 30*time.Second, 2*time.Second
	if scaled(t, fullRotations) < fullRotations {
		long = 6 * time.Second
	}
	if slowMachine() {
		perSecond, patience = 500, 15*time.Second
	}
	ctx, f := startFor(t, suited(), 3, 1, "")
	blue := attachAll(t, ctx, f, "blue")
	for _, n := range f.Nodes {
		// A tunnel can be up before gossip counts the node at its other end.
		if err := n.WaitStatus(ctx, "all members alive", func(s api.Status) bool { return s.Members.OK == 3 }); err != nil {
			t.Fatal(err)
		}
	}
	outsider, err := f.AddNode("outsider")
	if err != nil {
		t.Fatal(err)
	}
	late, err := f.AddNode("late")
	if err != nil {
		t.Fatal(err)
	}
	token, err := f.Token(ctx)
	if err != nil {
		t.Fatal(err)
	}
	garbage, stop := context.WithTimeout(ctx, long)
	defer stop()
	var wg sync.WaitGroup
	var opened atomic.Int64
	for _, n := range f.Nodes[:3] {
		wg.Go(func() {
			opened.Add(flood(garbage, outsider.Host.NS(), netip.AddrPortFrom(n.Host.V4(), 7946), perSecond/3))
		})
	}
	defer wg.Wait()

	begin := time.Now()
	if _, err := late.CLI(ctx, "join", token); err != nil {
		t.Error(err)
	}
	took := time.Since(begin)
	if took > patience {
		t.Errorf("a join took %v in the flood, want at most %v", took, patience)
	}
	for looks := 0; garbage.Err() == nil; looks++ {
		for _, n := range f.Nodes[:3] {
			list, err := n.Client().Members(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range list.Members {
				if m.State != "alive" && m.Name != late.Name {
					t.Errorf("look %d: %s holds %s for %s", looks, n.Name, m.Name, m.State)
				}
			}
		}
		select {
		case <-garbage.Done():
		case <-time.After(200 * time.Millisecond): // the next look
		}
	}
	wg.Wait()
	t.Logf("%d garbage connections in %v; the join took %v", opened.Load(), long, took.Round(time.Millisecond))
	if opened.Load() == 0 {
		t.Error("nothing was flooded")
	}
	mustPing(t, ctx, blue[0], blue[1].V4(), 100)
}
