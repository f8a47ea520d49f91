package netlab

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// childEnv makes the test binary a program for tests of Command: a virtual
// machine has no other.
const childEnv = "NETLAB_TEST_CHILD"

func TestMain(m *testing.M) {
	switch os.Getenv(childEnv) {
	case "":
		goleak.VerifyTestMain(m)
	case "wait":
		select {}
	case "inode":
		var st unix.Stat_t
		if err := unix.Stat("/proc/self/ns/net", &st); err != nil {
			os.Exit(1)
		}
		_, _ = fmt.Fprintln(os.Stdout, st.Ino)
	default:
		os.Exit(1)
	}
}

// child prepares the test binary as a program inside a namespace.
func child(t *testing.T, b *Box, what string) *Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := b.Command(t.Context(), self)
	cmd.Env = []string{childEnv + "=" + what}
	return cmd
}

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
