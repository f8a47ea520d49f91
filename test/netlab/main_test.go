package netlab

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// newLab makes a lab that ends with the test and must leave nothing behind.
func newLab(t *testing.T, name string) *Lab {
	t.Helper()
	Require(t, FeatureNetns)
	l, err := New(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		left, err := NamespaceMounts(l.Dir())
		if err != nil || len(left) != 0 {
			t.Errorf("the lab left %v behind, %v", left, err)
		}
	})
	return l
}

func newHost(t *testing.T, l *Lab, name string, opts ...HostOption) *Host {
	t.Helper()
	h, err := l.Host(name, opts...)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
