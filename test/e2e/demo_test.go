package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"testing"

	"github.com/secure-overlay/secure-overlay/internal/demo"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// TestDemo runs the README's first command and reads its findings.
func TestDemo(t *testing.T) {
	netlab.Require(t, netlab.FeatureNetns)
	cmd := exec.CommandContext(t.Context(), os.Getenv(binaryEnv), "demo", "-o", "json")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("demo: %v\n%s", err, stderr.String())
	}
	var r demo.Result
	if err := json.Unmarshal(stdout.Bytes(), &r); err != nil {
		t.Fatalf("decode %q: %v", stdout.String(), err)
	}
	if len(r.Networks) != 2 || r.Nodes != demo.DefaultNodes {
		t.Fatalf("findings: %+v", r)
	}
	for _, n := range r.Networks {
		t.Logf("%+v", n)
		if n.PingsSent == 0 || n.PingsReceived != n.PingsSent || n.WirePackets == 0 || n.MbitPerS <= 0 {
			t.Errorf("network %s: %+v", n.Name, n)
		}
		if n.Encrypted != (n.Name == "blue") || n.Encrypted != (n.WireReadable == 0) {
			t.Errorf("network %s: encrypted %v, readable %d", n.Name, n.Encrypted, n.WireReadable)
		}
	}
	t.Logf("%+v", r.Rotation)
	if ro := r.Rotation; ro.Rotations < 3 || ro.Sent < 1000 || ro.Lost != 0 || ro.Seconds <= 0 {
		t.Errorf("rotation: %+v", ro)
	}
}
