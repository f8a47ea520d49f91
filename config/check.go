package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
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
	cfg.Data.Port = c.port("data.port", raw.Data.Port)
	cfg.Data.VXLANPort = c.port("data.vxlan_port", raw.Data.VXLANPort)
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

func (c *checker) port(path string, val int64) uint16 {
	if !c.usable(path) {
		return 0
	}
	if val < 1 || val > 65535 {
		c.fail(path, fmt.Sprintf("port %d is out of range", val), fmt.Sprintf("1 to 65535, for example %d", clampPort(val)))
		return 0
	}
	return uint16(val)
}

func clampPort(v int64) int64 { return min(max(v, 1), 65535) }

// portsDiffer refuses two sockets of this node on one UDP port of the host
// namespace.
func (c *checker) portsDiffer(cfg Config) {
	type use struct {
		path string
		port uint16
	}
	uses := []use{{"control.bind", cfg.Control.Bind.Port()}, {"data.port", cfg.Data.Port}, {"data.vxlan_port", cfg.Data.VXLANPort}}
	for i, a := range uses {
		for _, b := range uses[:i] {
			if a.port != 0 && a.port == b.port {
				c.fail(a.path, fmt.Sprintf("UDP port %d is taken by %s", a.port, b.path), "choose another port")
			}
		}
	}
}

func (c *checker) bind(val string) netip.AddrPort {
	const path = "control.bind"
	if !c.usable(path) {
		return netip.AddrPort{}
	}
	ap, ok := c.addrPort(path, val, DefaultControlPort)
	if ok && ap.Addr().IsMulticast() {
		c.fail(path, val+" is a multicast address", "use an address of this host, or [::]:7946 for all")
	}
	return ap
}

func (c *checker) advertise(val string) netip.AddrPort {
	const path = "control.advertise"
	if val == "" || !c.usable(path) {
		return netip.AddrPort{}
	}
	ap, ok := c.addrPort(path, val, DefaultControlPort)
	if ok {
		switch a := ap.Addr(); {
		case a.IsUnspecified(), a.IsMulticast():
			c.fail(path, fmt.Sprintf("%s is no address that others can reach", a), "use an address of this host")
		case a.Zone() != "":
			c.fail(path, fmt.Sprintf("%s has a zone, which means nothing on another host", a), "use a global address of this host")
		}
	}
	return ap
}

// addrPort parses address:port and says what is missing if it cannot.
func (c *checker) addrPort(path, val string, port uint16) (netip.AddrPort, bool) {
	ap, err := netip.ParseAddrPort(val)
	switch {
	case err != nil:
		hint := fmt.Sprintf("write address:port, for example %q", "[::]:"+strconv.Itoa(int(port)))
		if a, err := netip.ParseAddr(strings.Trim(val, "[]")); err == nil {
			hint = fmt.Sprintf("write %q", netip.AddrPortFrom(a, port))
		} else if p, err := strconv.ParseUint(strings.TrimPrefix(val, ":"), 10, 16); err == nil && p > 0 {
			hint = fmt.Sprintf("write %q", "[::]:"+strconv.FormatUint(p, 10))
		}
		c.fail(path, fmt.Sprintf("%q is not an address with a port", shorten(val)), hint)
		return netip.AddrPort{}, false
	case ap.Port() == 0:
		c.fail(path, fmt.Sprintf("port 0 in %q", shorten(val)), fmt.Sprintf("write %q", netip.AddrPortFrom(ap.Addr(), port)))
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), true
}

func (c *checker) seeds(vals []string) []string {
	const path = "control.seeds"
	first := map[string]int{}
	for i, s := range vals {
		p := fmt.Sprintf("%s[%d]", path, i)
		if !c.usable(p) {
			continue
		}
		if problem, hint := checkHostPort(s); problem != "" {
			c.fail(p, problem, hint)
			continue
		}
		if j, dup := first[strings.ToLower(s)]; dup {
			c.fail(p, fmt.Sprintf("%q stands in the list twice, first as number %d", s, j+1), "keep one of them")
			continue
		}
		first[strings.ToLower(s)] = i
	}
	return slices.Clone(vals)
}

// checkHostPort checks host:port or address:port; the results are empty if
// it is valid.
func checkHostPort(s string) (problem, hint string) {
	i := strings.LastIndexByte(s, ':')
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return fmt.Sprintf("%q has no port", s), fmt.Sprintf("write %q", netip.AddrPortFrom(a, DefaultControlPort))
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		if ap.Port() == 0 || ap.Addr().IsUnspecified() || ap.Addr().IsMulticast() {
			return fmt.Sprintf("%q is nothing that can be contacted", s), "write the address and port of a member"
		}
		return "", ""
	}
	if i < 0 {
		if validHost(s) {
			return fmt.Sprintf("%q has no port", s), fmt.Sprintf("write %q", s+":"+strconv.Itoa(DefaultControlPort))
		}
		return fmt.Sprintf("%q is not host:port", shorten(s)), `for example "10.0.0.11:7946"`
	}
	port, err := strconv.ParseUint(s[i+1:], 10, 16)
	if err != nil || port == 0 {
		return fmt.Sprintf("%q has no valid port", shorten(s)), "1 to 65535"
	}
	if !validHost(s[:i]) {
		return fmt.Sprintf("%q is not host:port", shorten(s)), `for example "10.0.0.11:7946"`
	}
	return "", ""
}

// validHost accepts DNS names (RFC 1123 letters, plus the underscore). A name
// of digits and dots only is a mistyped address, not a host.
func validHost(s string) bool {
	if len(s) == 0 || len(s) > 253 || strings.Trim(s, "0123456789.") == "" {
		return false
	}
	for label := range strings.SplitSeq(strings.TrimSuffix(s, "."), ".") {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for i := range len(label) {
			if !nameRune(label[i]) {
				return false
			}
		}
	}
	return true
}
