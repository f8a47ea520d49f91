package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/secure-overlay/secure-overlay/test/fleet"
)

// maxGrowth is by how much an attack may make an agent grow: 64 MiB. The race
// detector keeps notes about each byte.
func maxGrowth() int64 {
	const most = 64 << 20
	if raceDetector {
		return 3 * most
	}
	return most
}

// growth watches how much memory agents have.
type growth struct {
	nodes  []*fleet.Node
	before []int64
}

// watchGrowth notes what the agents have now, and has the kernel forget their peaks.
func watchGrowth(t *testing.T, nodes []*fleet.Node) *growth {
	t.Helper()
	g := &growth{nodes: nodes}
	for _, n := range nodes {
		g.before = append(g.before, resident(t, n, "VmRSS"))
		// proc_pid_clear_refs(5): 5 resets VmHWM.
		if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", n.PID()), []byte("5"), 0); err != nil {
			t.Fatal(err)
		}
	}
	return g
}

// wantBounded asserts that no agent ever had more than maxGrowth above what it had.
// The peak counts: what is given back a minute later was there.
func (g *growth) wantBounded(t *testing.T) {
	t.Helper()
	for i, n := range g.nodes {
		peak, now := resident(t, n, "VmHWM"), resident(t, n, "VmRSS")
		t.Logf("memory of the agent of %s: %d MiB before, at most %d, %d now", n.Name, g.before[i]>>20, peak>>20, now>>20)
		if peak-g.before[i] > maxGrowth() {
			t.Errorf("the agent of %s grew by %d MiB, want at most %d", n.Name, (peak-g.before[i])>>20, maxGrowth()>>20)
		}
	}
}

// resident reads VmRSS (now) or VmHWM (the most so far) of a node's agent, in
// bytes (proc_pid_status(5)).
func resident(t *testing.T, n *fleet.Node, field string) int64 {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				t.Fatalf("%s of %s: %v", field, n.Name, err)
			}
			return kb << 10
		}
	}
	t.Fatalf("%s has no %s", n.Name, field)
	return 0
}
