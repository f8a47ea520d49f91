package config

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDiff(t *testing.T) {
	network := func(name string) Network {
		return Network{Name: name, VNI: 7, Encrypted: true, Driver: DriverAuto, Subnets: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")}}
	}
	was := Config{Log: Log{Level: "info"}, Networks: []Network{network("blue"), network("green")}}
	is := was
	is.Networks = slices.Clone(was.Networks)
	if d := Diff(was, is); len(d) != 0 {
		t.Errorf("of equal ones: %+v", d)
	}
	is.Log.Level, is.Keys.RotateEvery, is.Control.Profile, is.Data.Port = "debug", time.Hour, "wan", 5
	is.Networks[0].MTU, is.Networks[0].Encrypted = 1300, false
	is.Networks[1] = network("red")
	want := []Change{
		{"control.profile", "", "wan", false},
		{"data.port", "0", "5", false},
		{"keys.rotate_every", "0s", "1h", true},
		{"log.level", "info", "debug", true},
		{"networks[blue].encrypted", "true", "false", true},
		{"networks[blue].mtu", "derived", "1300", true},
		{"networks[green]", "10.77.0.0/16, encrypted, VNI 7", "-", true},
		{"networks[red]", "-", "10.77.0.0/16, encrypted, VNI 7", true},
	}
	got := Diff(was, is)
	slices.SortFunc(got, func(a, b Change) int { return map[bool]int{true: -1, false: 1}[a.Key < b.Key] })
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	for _, key := range live() {
		if !slices.ContainsFunc(is.Settings(), func(s Setting) bool { return s.Key == key }) {
			t.Errorf("there is no setting %s", key)
		}
	}
}
