package config

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
)

// place is where a value stands, for problems and origins.
type place struct {
	file   string
	line   int
	key    string
	origin Origin // of environment and flags; empty for the file
}

// checker turns a rawConfig into a Config and collects what is wrong.
type checker struct {
	doc      *document
	place    map[string]place // path -> where its value came from
	problems []Problem
}

// at finds where the value of a path stands: itself, or what contains it.
func (c *checker) at(path string) place {
	for p := path; p != ""; {
		if pl, ok := c.place[p]; ok {
			if pl.origin == "" {
				pl.key = path
			}
			return pl
		}
		i := strings.LastIndexAny(p, ".[")
		if i < 0 {
			break
		}
		p = p[:i]
	}
	return place{file: c.doc.file, key: path}
}

func (c *checker) report(at place, problem, hint string) {
	c.problems = append(c.problems, Problem{File: at.file, Line: at.line, Key: at.key, Problem: problem, Hint: hint})
}

// fail reports a problem with the value of a path.
func (c *checker) fail(path, problem, hint string) { c.report(c.at(path), problem, hint) }

// usable reports whether the value of a path survived the check of its form.
func (c *checker) usable(path string) bool { return !c.doc.broken[path] }

// check applies every rule.
func (c *checker) check(raw rawConfig) Config {
	cfg := Config{DataDir: raw.DataDir, RuntimeDir: raw.RuntimeDir}
	cfg.Node.Name = raw.Node.Name
	if c.usable("node.name") && !validName(raw.Node.Name) {
		c.fail("node.name", fmt.Sprintf("%q is not a valid name", shorten(raw.Node.Name)), nameHint(raw.Node.Name))
	}
	c.directories(raw)
	cfg.Control.Bind = c.bind(raw.Control.Bind)
	cfg.Control.Advertise = c.advertise(raw.Control.Advertise)
	cfg.Control.Seeds = c.seeds(raw.Control.Seeds)
	cfg.Control.Profile = c.choice("control.profile", raw.Control.Profile, ProfileLAN, ProfileWAN, ProfileLocal)
	cfg.Data.Port = c.dataPort(raw.Data.Port)
	cfg.Data.VXLANPort = c.port("data.vxlan_port", raw.Data.VXLANPort)
	cfg.Keys = c.keys(raw, cfg.Control.Profile)
	cfg.Crypto = Crypto{RequirePQ: raw.Crypto.RequirePQ, ClockTolerance: raw.Crypto.ClockTolerance}
	c.between("crypto.clock_tolerance", cfg.Crypto.ClockTolerance, minClockTolerance, maxClockTolerance, true, "")
	cfg.IPsec.Encap = c.choice("ipsec.encap", raw.IPsec.Encap, EncapAuto, EncapNone, EncapUDP)
	cfg.Metrics.Listen = c.metricsListen(raw.Metrics.Listen)
	c.portsDiffer(cfg)
	cfg.Log.Level = c.choice("log.level", raw.Log.Level, "debug", "info", "warn", "error")
	cfg.Log.Format = c.choice("log.format", raw.Log.Format, "text", "json")
	cfg.Networks = c.networks(raw.Networks)
	return cfg
}

// maxName is the longest name of a node or network: a DNS label's length.
const maxName = 63

// validName reports whether s is 1..63 of A-Z a-z 0-9 . _ - and starts with
// a letter or digit, so that it is a safe file name, too.
func validName(s string) bool {
	if len(s) < 1 || len(s) > maxName || strings.IndexByte("._-", s[0]) >= 0 {
		return false
	}
	for i := range len(s) {
		if !nameRune(s[i]) {
			return false
		}
	}
	return true
}

func nameRune(b byte) bool {
	return b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z' || b >= '0' && b <= '9' || b == '.' || b == '_' || b == '-'
}

// nameHint makes a valid name out of s, or states the rule.
func nameHint(s string) string {
	fixed := strings.Map(func(r rune) rune {
		if r < 0x80 && nameRune(byte(r)) {
			return r
		}
		return '-'
	}, strings.TrimSpace(s))
	fixed = strings.TrimRight(strings.TrimLeft(fixed, "._-"), "-")
	rule := "1 to 63 of A-Z a-z 0-9 . _ -, starting with a letter or digit"
	if fixed = fixed[:min(len(fixed), maxName)]; fixed != s && validName(fixed) {
		return fmt.Sprintf("for example %q; %s", fixed, rule)
	}
	return rule
}

// maxSocketPath is what fits sockaddr_un (unix(7)) with its final NUL.
const maxSocketPath = 107

func (c *checker) directories(raw rawConfig) {
	dirs := []struct{ path, val string }{{"data_dir", raw.DataDir}, {"runtime_dir", raw.RuntimeDir}}
	valid := true
	for _, d := range dirs {
		if !c.usable(d.path) {
			valid = false
			continue
		}
		switch {
		case !filepath.IsAbs(d.val):
			c.fail(d.path, fmt.Sprintf("%q is not an absolute path", shorten(d.val)), "start it with /")
			valid = false
		case filepath.Clean(d.val) != d.val:
			c.fail(d.path, fmt.Sprintf("%q is not a plain path", shorten(d.val)), fmt.Sprintf("write %q", filepath.Clean(d.val)))
			valid = false
		case d.val == "/":
			c.fail(d.path, "the root directory cannot be ours alone", "for example "+DefaultDataDir)
			valid = false
		case strings.ContainsFunc(d.val, func(r rune) bool { return r < 0x20 || r == 0x7f }):
			c.fail(d.path, "the path contains a control character", "")
			valid = false
		}
	}
	if !valid {
		return
	}
	if n := len(raw.RuntimeDir + "/agent.sock"); n > maxSocketPath {
		c.fail("runtime_dir", fmt.Sprintf("the path of the control socket in it is %d characters long, %d fit", n, maxSocketPath), "choose a shorter path")
	}
	// Data is durable and private, run state is wiped at boot and readable:
	// one inside the other would lose the one or expose the other.
	if raw.DataDir == raw.RuntimeDir || strings.HasPrefix(raw.DataDir, raw.RuntimeDir+"/") || strings.HasPrefix(raw.RuntimeDir, raw.DataDir+"/") {
		c.fail("runtime_dir", fmt.Sprintf("data_dir %s and runtime_dir %s must not contain each other", raw.DataDir, raw.RuntimeDir), "choose two separate directories")
	}
}

func (c *checker) choice(path, val string, choices ...string) string {
	if c.usable(path) && !slices.Contains(choices, val) {
		c.fail(path, fmt.Sprintf("unknown value %q", shorten(val)), choiceHint(val, choices))
	}
	return val
}
