package config

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Bounds of the settings below keys. Those of profile local are lower: on one
// machine nothing takes long.
const (
	minRotateEvery = time.Minute
	maxRotateEvery = 365 * 24 * time.Hour
	minPause       = time.Second
	minLocal       = 10 * time.Millisecond
	maxInterval    = time.Hour
	maxPause       = 10 * time.Minute
	minHoldDown    = time.Minute
	maxHoldDown    = 30 * 24 * time.Hour

	// Less than a handshake may take says nothing about clocks; more would keep
	// whoever was let go in for days.
	minClockTolerance = time.Second
	maxClockTolerance = 24 * time.Hour

	// Fewer would start one epoch after the other on a busy network.
	minESPPackets = 1000
	minESPBytes   = 1000 * 1000
)

// keys applies the rules of the settings below keys.
func (c *checker) keys(raw rawConfig, profile string) Keys {
	in := raw.Keys
	local := profile == ProfileLocal
	low := func(usual, onOne time.Duration) time.Duration {
		if local {
			return onOne
		}
		return usual
	}
	k := Keys{RotateEvery: in.RotateEvery, MinInterval: in.MinInterval, Drain: in.Drain, Quiet: in.Quiet, HoldDown: in.HoldDown}
	if k.RotateEvery != 0 {
		c.between("keys.rotate_every", k.RotateEvery, low(minRotateEvery, minLocal), maxRotateEvery, local, "; 0: only on command")
	}
	// The pause keeps an issuer that has gone bad from spinning the nodes, so
	// it can be switched off on a single machine only.
	c.between("keys.min_interval", k.MinInterval, low(minPause, 0), maxInterval, local, "")
	c.between("keys.drain", k.Drain, low(minPause, minLocal), maxPause, local, "")
	c.between("keys.quiet", k.Quiet, low(minPause, minLocal), maxPause, local, "")
	c.between("keys.hold_down", k.HoldDown, low(minHoldDown, minPause), maxHoldDown, local, "")
	if c.usable("keys.rotate_every") && c.usable("keys.min_interval") && k.RotateEvery != 0 && k.RotateEvery < k.MinInterval {
		c.fail("keys.rotate_every", fmt.Sprintf("%s is shorter than keys.min_interval, %s", durationText(k.RotateEvery), durationText(k.MinInterval)),
			"at least "+durationText(k.MinInterval))
	}
	if c.usable("keys.hold_down") && c.usable("keys.drain") && k.HoldDown < k.Drain {
		c.fail("keys.hold_down", fmt.Sprintf("%s is shorter than keys.drain, %s", durationText(k.HoldDown), durationText(k.Drain)),
			"at least "+durationText(k.Drain))
	}
	k.ESPMaxPackets = c.limit("keys.esp_max_packets", in.ESPMaxPackets, minESPPackets, MaxESPPackets)
	k.ESPMaxBytes = c.limit("keys.esp_max_bytes", in.ESPMaxBytes, minESPBytes, MaxESPBytes)
	return k
}

// between checks a duration and reports the nearest one that is allowed, with
// what else may be written.
func (c *checker) between(path string, d, lo, hi time.Duration, local bool, also string) {
	switch {
	case !c.usable(path):
	case d < lo:
		hint := "at least " + durationText(lo) + also
		if !local {
			hint += "; shorter ones with control.profile: local only"
		}
		c.fail(path, durationText(d)+" is too short", hint)
	case d > hi:
		c.fail(path, durationText(d)+" is too long", "at most "+durationText(hi)+also)
	}
}

// limit checks a number that can be lowered from its default.
func (c *checker) limit(path string, n, lo, hi int64) uint64 {
	switch {
	case !c.usable(path):
		return 0
	case n < lo:
		c.fail(path, fmt.Sprintf("%d is too few", n), fmt.Sprintf("at least %d", lo))
		return 0
	case n > hi:
		c.fail(path, fmt.Sprintf("%d is more than one key should encrypt", n), fmt.Sprintf("at most %d, which is the default", hi))
		return 0
	}
	return uint64(n)
}

// numberWord is a number with what might be meant as its unit.
var numberWord = regexp.MustCompile(`^([0-9]+)([a-z]*)$`)

// parseDuration reads a duration such as 1h30m, or 0. problem and hint are
// empty if it is one.
func parseDuration(s string) (d time.Duration, problem, hint string) {
	d, err := time.ParseDuration(s)
	switch {
	case err == nil && d < 0:
		return 0, fmt.Sprintf("the duration %q is negative", shorten(s)), fmt.Sprintf("write %q", durationText(-d))
	case err == nil && s[0] != '+':
		return d, "", ""
	}
	problem = fmt.Sprintf("%q is not a duration", shorten(s))
	plain := strings.ToLower(strings.Join(strings.Fields(strings.TrimPrefix(s, "+")), ""))
	if near, err := time.ParseDuration(plain); err == nil && near >= 0 {
		return 0, problem, fmt.Sprintf("write %q", durationText(near))
	}
	m := numberWord.FindStringSubmatch(plain)
	if m == nil || len(m[1]) > 4 {
		return 0, problem, "for example 12h, 90m or 30s"
	}
	if m[2] == "" {
		return 0, problem, fmt.Sprintf("give it a unit: %ss, %sm or %sh", m[1], m[1], m[1])
	}
	if unit := unitOf(m[2]); unit > 0 {
		n, err := strconv.Atoi(m[1])
		if err == nil {
			return 0, problem, fmt.Sprintf("write %q", durationText(time.Duration(n)*unit))
		}
	}
	return 0, problem, "for example 12h, 90m or 30s"
}

// unitOf is what a word behind a number probably means; 0 if nothing.
func unitOf(word string) time.Duration {
	for _, u := range []struct {
		prefix string
		unit   time.Duration
	}{
		{"ms", time.Millisecond}, {"milli", time.Millisecond}, {"s", time.Second}, {"mi", time.Minute},
		{"h", time.Hour}, {"d", 24 * time.Hour}, {"w", 7 * 24 * time.Hour},
	} {
		if strings.HasPrefix(word, u.prefix) {
			return u.unit
		}
	}
	return 0
}

// durationText is the shortest form of a duration: 12h, not 12h0m0s.
func durationText(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}
