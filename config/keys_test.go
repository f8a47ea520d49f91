package config

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestDurations(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "0s": 0, "12h": 12 * time.Hour, "90m": 90 * time.Minute, "1h30m": 90 * time.Minute, "1.5h": 90 * time.Minute, "300ms": 300 * time.Millisecond,
	} {
		got, problem, _ := parseDuration(text)
		if problem != "" || got != want {
			t.Errorf("%q = %s, %s", text, got, problem)
		}
		if again, problem, _ := parseDuration(durationText(want)); problem != "" || again != want {
			t.Errorf("%s is written %q", want, durationText(want))
		}
	}
	for text, hint := range map[string]string{
		"12": "12s, 12m or 12h", "7d": `"168h"`, "2w": `"336h"`, "1 day": `"24h"`, "12 h": `"12h"`, "12H": `"12h"`, "1h 30m": `"1h30m"`, "5min": `"5m"`, "10 seconds": `"10s"`,
		"+1h": `"1h"`, "-1h": `"1h"`, "20msec": `"20ms"`, "3 millis": `"3ms"`, "12 hours": `"12h"`, "1:30": "for example", "": "for example", "never": "for example",
		"1month": "for example", "1e9h": "for example", "9999999999h": "for example", "99999999999999999999": "for example", "1h30": "for example", "١h": "for example",
	} {
		d, problem, got := parseDuration(text)
		if problem == "" || d != 0 || !strings.Contains(got, hint) {
			t.Errorf("%q = %s: %s (%s), want a hint with %s", text, d, problem, got, hint)
		}
	}
	for d, want := range map[time.Duration]string{0: "0s", time.Hour: "1h", 90 * time.Minute: "1h30m", 10 * time.Minute: "10m", 3610 * time.Second: "1h0m10s", 20 * time.Hour: "20h", 100 * time.Millisecond: "100ms"} {
		if got := durationText(d); got != want {
			t.Errorf("durationText(%s) = %q, want %q", d, got, want)
		}
	}
}

func FuzzDuration(f *testing.F) {
	for _, s := range []string{"12h", "0", "-1m", "7d", "1h 30m", "999999w", "", "+.5h", "1:30"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, problem, hint := parseDuration(s)
		if d < 0 || (problem == "") != (hint == "") || problem != "" && d != 0 {
			t.Fatalf("%q: %s, %q (%q)", s, d, problem, hint)
		}
		if text, ok := strings.CutPrefix(hint, `write "`); ok {
			if _, problem, _ := parseDuration(strings.TrimSuffix(text, `"`)); problem != "" {
				t.Fatalf("%q: the hint %s is no good: %s", s, hint, problem)
			}
		}
	})
}

// Profile local has other defaults, which the file overrides as any.
func TestLocalDefaults(t *testing.T) {
	cfg, err := load(t, "control: {profile: local}\nkeys: {drain: 1s}\n", "SECURE_OVERLAY_KEYS_QUIET=50ms")
	if err != nil {
		t.Fatal(err)
	}
	want := Keys{RotateEvery: 12 * time.Hour, Drain: time.Second, Quiet: 50 * time.Millisecond, HoldDown: 30 * time.Second, ESPMaxPackets: MaxESPPackets, ESPMaxBytes: MaxESPBytes}
	if d := cmp.Diff(want, cfg.Keys); d != "" {
		t.Error(d)
	}
	for _, s := range cfg.Settings() {
		want, ok := map[string]Setting{
			"keys.min_interval": {Value: "0s", Origin: "default of profile local"}, "keys.hold_down": {Value: "30s", Origin: "default of profile local"},
			"keys.quiet": {Value: "50ms", Origin: "env SECURE_OVERLAY_KEYS_QUIET"}, "keys.rotate_every": {Value: "12h", Origin: OriginDefault},
			"crypto.require_pq": {Value: "false", Origin: OriginDefault}, "metrics.listen": {Value: "none", Origin: OriginDefault},
			"crypto.clock_tolerance": {Value: "5m", Origin: OriginDefault},
		}[s.Key]
		if ok && (s.Value != want.Value || s.Origin != want.Origin) {
			t.Errorf("%+v, want %+v", s, want)
		}
	}
	// The profile may come from a flag; short ones are allowed with it.
	path := Source{Flags: map[string]string{"profile": "local", "rotate-every": "100ms"}}
	if cfg, err = Load(path); err != nil || cfg.Keys.RotateEvery != 100*time.Millisecond || cfg.Keys.Drain != 300*time.Millisecond {
		t.Errorf("by flag: %+v, %v", cfg.Keys, err)
	}
	if cfg, err = Load(Source{Flags: map[string]string{"rotate-every": "0"}}); err != nil || cfg.Keys.RotateEvery != 0 {
		t.Errorf("only on command: %+v, %v", cfg.Keys, err)
	}
}

// Every default of profile local is the default of a key, of the same type.
func TestLocalDefaultsExist(t *testing.T) {
	usual := defaults("x")
	for path, val := range localDefaults() {
		if _, ok := usual[path].(time.Duration); !ok {
			t.Errorf("%s: %v instead of %v", path, val, usual[path])
		}
	}
	for _, l := range leaves() {
		if _, ok := usual[l.path]; !ok {
			t.Errorf("%s has no default", l.path)
		}
	}
}

func TestNewKinds(t *testing.T) {
	cfg, err := load(t, "crypto:\n  require_pq:\n    true\n  clock_tolerance: 24h\nkeys: {rotate_every: 0, esp_max_packets: 1000}\nipsec: {encap: udp}\nmetrics: {listen: \"[::1]:9100\"}\ncontrol: {bind: \"10.0.0.1:9100\"}\n")
	if err != nil {
		t.Fatal(err)
	}
	if !cfg.Crypto.RequirePQ || cfg.Crypto.ClockTolerance != 24*time.Hour || cfg.Keys.RotateEvery != 0 || cfg.Keys.ESPMaxPackets != 1000 || cfg.IPsec.Encap != EncapUDP || cfg.Metrics.Listen != netip.MustParseAddrPort("[::1]:9100") {
		t.Errorf("%+v", cfg)
	}
	// A flag or variable overrides in both directions, spelt exactly.
	cfg, err = Load(Source{Env: []string{"SECURE_OVERLAY_CRYPTO_REQUIRE_PQ=true"}, Flags: map[string]string{"require-pq": "false"}})
	if err != nil || cfg.Crypto.RequirePQ {
		t.Errorf("flag over variable: %v, %v", cfg.Crypto, err)
	}
	_, err = Load(Source{
		Env:   []string{"SECURE_OVERLAY_CRYPTO_REQUIRE_PQ=yes", "SECURE_OVERLAY_KEYS_DRAIN=30"},
		Flags: map[string]string{"require-pq": "maybe", "keys-hold-down": "1s"},
	})
	want := `SECURE_OVERLAY_CRYPTO_REQUIRE_PQ: want true or false, have "yes" (write true, without quotes)
SECURE_OVERLAY_KEYS_DRAIN: "30" is not a duration (give it a unit: 30s, 30m or 30h)
--require-pq: want true or false, have "maybe" (write true or false, without quotes)
--keys-hold-down: 1s is too short (at least 1m; shorter ones with control.profile: local only)
--keys-hold-down: 1s is shorter than keys.drain, 30s (at least 30s)`
	if d := cmp.Diff(want, report(t, err)); d != "" {
		t.Error(d)
	}
	for _, f := range Flags() {
		if f.Bool != (f.Key == "crypto.require_pq") {
			t.Errorf("%+v", f)
		}
		if f.Key == "keys.rotate_every" && f.Default != "12h" {
			t.Errorf("%+v", f)
		}
	}
}
