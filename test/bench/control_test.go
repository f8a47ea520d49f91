package main

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// TestControlBench runs the command, small, so that it does not rot.
func TestControlBench(t *testing.T) {
	netlab.Require(t, netlab.FeatureNetns)
	var out bytes.Buffer
	if err := controlBench(t.Context(), []string{"-nodes", "2", "-samples", "3", "-remotes", "100", "-rounds", "1", "-memory", "0,50", "-o", "json"}, &out); err != nil {
		t.Fatal(err)
	}
	var r controlResult
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		t.Fatal(err)
	}
	if len(r.Attach) != 1 || r.Attach[0].P50 <= 0 || len(r.Network) != 1 || r.Network[0].Samples != 3 || len(r.Entries) != 2 || r.Entries[1].PerSecond <= 0 ||
		len(r.Memory) != 2 || r.Memory[1].Entries != 151 || r.Memory[1].RSS <= 0 || r.Memory[1].Heap <= 0 {
		t.Errorf("%+v", r)
	}
	out.Reset()
	if err := printControl(&out, r); err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", out.String())
}
