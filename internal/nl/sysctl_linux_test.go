package nl

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestSysctlsFollowTheNamespace(t *testing.T) {
	requireRoot(t)
	path := filepath.Join(t.TempDir(), "ns")
	ns, err := CreateNamespace(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = RemoveNamespace(path) })
	defer func() { _ = ns.Close() }()
	const key = "ipv6/conf/default/accept_ra"
	outside, err := os.ReadFile("/proc/sys/net/" + key)
	if err != nil {
		t.Fatal(err)
	}
	want := []Sysctl{
		{Key: key, Value: "0"},
		{Key: "nosuch/setting", Value: "1", Optional: true},
	}
	if drift, err := ns.SysctlDrift(want); err != nil || !cmp.Equal(drift, []string{key}) {
		t.Errorf("drift of a new namespace = %v, %v", drift, err)
	}
	if wrote, err := ns.SetSysctls(want); err != nil || !cmp.Equal(wrote, []string{key}) {
		t.Errorf("set = %v, %v", wrote, err)
	}
	if wrote, err := ns.SetSysctls(want); err != nil || len(wrote) != 0 {
		t.Errorf("second set = %v, %v", wrote, err)
	}
	if after, _ := os.ReadFile("/proc/sys/net/" + key); string(after) != string(outside) {
		t.Errorf("the test's own namespace changed from %q to %q", outside, after)
	}
	want[1].Optional = false
	if _, err := ns.SetSysctls(want); err == nil {
		t.Error("a missing setting that is not optional was accepted")
	}
}
