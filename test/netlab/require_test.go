package netlab

import (
	"fmt"
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
