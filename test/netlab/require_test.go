package netlab

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// outcome records what Require did.
type outcome struct{ fatal, skip string }

func (*outcome) Helper()                       {}
func (o *outcome) Fatalf(f string, a ...any)   { o.fatal = fmt.Sprintf(f, a...) }
func (o *outcome) Skipf(f string, args ...any) { o.skip = fmt.Sprintf(f, args...) }

func TestRequire(t *testing.T) {
	t.Setenv(RequireEnv, "netns,nosuch")
	var o outcome
	Require(&o, "nosuch")
	if o.fatal == "" || o.skip != "" {
		t.Errorf("listed and missing: %+v", o)
	}
	o = outcome{}
	Require(&o, "unlisted")
	if o.fatal != "" || o.skip == "" {
		t.Errorf("not listed and missing: %+v", o)
	}
	o = outcome{}
	Require(&o, FeatureNetns)
	if o != (outcome{}) {
		t.Errorf("present: %+v", o)
	}
}

// TestClockIsTheGuests: nothing lets a test set the clock of a machine that is not
// the one of test/vm, not even that somebody lists the feature.
func TestClockIsTheGuests(t *testing.T) {
	guest := strings.Contains(os.Getenv(RequireEnv), FeatureClock) && os.Getpid() != 1 && inGuest() == nil
	t.Setenv(RequireEnv, FeatureClock)
	var o outcome
	Require(&o, FeatureClock)
	if (o.fatal == "") != guest || o.skip != "" {
		t.Errorf("in the guest: %t; %+v", guest, o)
	}
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	if guest != strings.Contains(string(cmdline), GuestWord) {
		t.Errorf("in the guest: %t, booted with %s", guest, cmdline)
	}
}
