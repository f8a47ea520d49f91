package vm

import (
	"bytes"
	"flag"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/test/netlab"
)

var only = flag.String("suites", "", "boot with those suites only whose name contains this text")

// TestVM boots the machine and reports each test that ran inside as a subtest.
func TestVM(t *testing.T) {
	netlab.Require(t, netlab.FeatureVM)
	suites := slices.DeleteFunc(Suites(), func(s Suite) bool { return !strings.Contains(s.Name(), *only) })
	outcomes, err := Run(t.Context(), Options{
		Root: "../..", Suites: suites, Progress: func(line string) { t.Log(line) },
	})
	if err != nil {
		t.Error(err)
	}
	for i, s := range suites {
		t.Run(s.Name(), func(t *testing.T) {
			if i >= len(outcomes) {
				t.Fatal("never began")
			}
			all, err := outcomes[i].Results()
			if err != nil {
				t.Fatal(err)
			}
			for _, sub := range all.Sub {
				replay(t, sub)
			}
			if exit := outcomes[i].Exit; exit != "0" || len(all.Sub) == 0 {
				t.Errorf("%d tests, exit %q\n%s", len(all.Sub), exit, all.Output)
			}
		})
	}
}

// replay reports a test of the machine as a test of this process.
func replay(t *testing.T, r *Result) {
	t.Run(r.Name, func(t *testing.T) {
		for _, sub := range r.Sub {
			replay(t, sub)
		}
		if r.Output != "" {
			t.Log(strings.TrimRight(r.Output, "\n"))
		}
		if what := r.Complaint(); what != "" {
			t.Error(what)
		}
	})
}

func TestSuitesHaveDifferentNames(t *testing.T) {
	names := make(map[string]bool)
	binaries := make(map[string]string)
	for _, s := range Suites() {
		if names[s.Name()] {
			t.Errorf("two suites are called %s", s.Name())
		}
		names[s.Name()] = true
		if other := binaries[testBinary(s)]; other != "" && other != s.Package {
			t.Errorf("%s and %s both become %s: go test -c would overwrite one", other, s.Package, testBinary(s))
		}
		binaries[testBinary(s)] = s.Package
	}
}

const guestOutput = "noise\r\n\r\n@@begin tunnel/x\r\n" +
	"\x16=== RUN   TestA\r\n\x16=== RUN   TestA/one\r\n    x_test.go:1: said\r\n\x16--- PASS: TestA (0.10s)\r\n\x16    --- PASS: TestA/one (0.05s)\r\n" +
	"\x16=== RUN   TestB\r\n    x_test.go:2: no WireGuard\r\n\x16--- SKIP: TestB (0.00s)\r\n" +
	"\x16=== RUN   TestC\r\npanic: boom\r\n\r\n@@end tunnel/x 2\r\n@@begin vxlan\r\n"

func TestCollect(t *testing.T) {
	outcomes, done := collect(strings.NewReader(guestOutput), func(string, ...any) {})
	if done || len(outcomes) != 2 {
		t.Fatalf("%d outcomes, done = %v; want 2, cut short", len(outcomes), done)
	}
	if outcomes[0].Exit != "2" || outcomes[1].Exit != "" {
		t.Errorf("exits = %q, %q", outcomes[0].Exit, outcomes[1].Exit)
	}
	all, err := outcomes[0].Results()
	if err != nil {
		t.Fatal(err)
	}
	type flat struct{ Name, Complaint string }
	var got []flat
	var walk func(prefix string, r *Result)
	walk = func(prefix string, r *Result) {
		for _, sub := range r.Sub {
			got = append(got, flat{prefix + sub.Name, sub.Complaint()})
			walk(prefix+sub.Name+"/", sub)
		}
	}
	walk("", all)
	want := []flat{
		{"TestA", ""}, {"TestA/one", ""},
		{"TestB", "skipped inside the machine, which has everything that is required"},
		{"TestC", "did not end inside the machine"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
	if !strings.Contains(all.find("TestA/one").Output, "said") {
		t.Errorf("output of TestA/one = %q", all.find("TestA/one").Output)
	}
}

// TestEmulatorFault: a machine is booted again only if nothing of ours can have been the reason.
func TestEmulatorFault(t *testing.T) {
	const int3 = "[    1.8] Oops: int3: 0000 [#1] PREEMPT SMP NOPTI\r\n"
	for name, c := range map[string]struct {
		outcomes []Outcome
		console  string
		want     bool
	}{
		"at boot":           {nil, int3, true},
		"while tests run":   {[]Outcome{{Suite: "vxlan"}}, int3, false},
		"another panic":     {nil, "[    1.8] Kernel panic - not syncing: VFS: Unable to mount root fs", false},
		"nothing was said":  {nil, "", false},
		"another exception": {nil, "[    1.8] Oops: general protection fault", false},
	} {
		if got := emulatorFault(c.outcomes, []byte(c.console)); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestArchive(t *testing.T) {
	var b bytes.Buffer
	a := newArchive(&b)
	if err := a.bytes("d/e/file", 0o755, []byte("12345")); err != nil {
		t.Fatal(err)
	}
	if err := a.close(); err != nil {
		t.Fatal(err)
	}
	// Two folders, the file, the trailer; each header has 110 bytes.
	if got := bytes.Count(b.Bytes(), []byte("070701")); got != 4 {
		t.Errorf("%d entries, want 4", got)
	}
	if i := bytes.Index(b.Bytes(), []byte("12345\x00\x00\x00070701")); i < 0 || i%4 != 0 {
		t.Errorf("content at %d is not padded to 4 bytes", i)
	}
	if !bytes.Contains(b.Bytes(), []byte("000081ed")) {
		t.Error("the file's mode is not 0100755")
	}
}
