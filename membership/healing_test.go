package membership

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// TestHealedSoon cuts two nodes off from each other for so long that gossip has
// forgotten them, again and again: with the timers that everybody has by default, all
// is known to both within 15 s of healing. Only they try: nobody else can tell them.
func TestHealedSoon(t *testing.T) {
	const soon = 15 * time.Second
	virtually(t, func(t *testing.T, l *lab) {
		nodes := l.cluster(2, lan)
		converge(t, nodes, 2)
		var worst time.Duration
		for v := range 30 {
			l.net.setBroken(func(_, _ ids.NodeID) bool { return true })
			<-time.After(2*time.Minute + rand.N(time.Minute))
			for _, n := range nodes {
				if got := countState(n.Snapshot(), StateDead); got != 1 {
					t.Fatalf("node %d holds %d for dead", n.i, got)
				}
			}
			nodes[0].Publish(content(0, v+1))
			<-time.After(time.Second)
			l.net.setBroken(nil)
			begin := time.Now()
			converge(t, nodes, 2)
			nodes[1].until("what was said during the cut", shows(nodes[0].self, 0, v+1))
			took := time.Since(begin)
			if worst = max(worst, took); took > soon {
				t.Errorf("cut %d: healed after %v, want at most %v", v, took, soon)
			}
		}
		t.Logf("healed after %v at most", worst.Round(time.Millisecond))
	})
}
