package config

import (
	"strings"
	"time"
)

// kind is the YAML type that a key takes.
type kind int

const (
	kindMap kind = iota
	kindString
	kindInt
	kindBool
	kindEncrypted // true, or false in the literal words
	kindDuration
	kindStrings  // list of strings
	kindNetworks // list of maps
)

// String names the kind for messages.
func (k kind) String() string {
	switch k {
	case kindMap:
		return "a group of keys"
	case kindString:
		return "a text"
	case kindInt:
		return "a whole number"
	case kindBool, kindEncrypted:
		return "true or false"
	case kindDuration:
		return "a duration"
	case kindStrings:
		return "a list of texts"
	case kindNetworks:
		return "a list of networks"
	default:
		return "a value"
	}
}

// field is one key of the file, with what may stand below it.
type field struct {
	name   string
	kind   kind
	fields []field
	help   string // one line, for flags
	flag   string // command-line flag that sets it; empty: derived from name
}

// fileFields returns the keys of the file, in the order of the reference.
// It is a function because the house has no package-level mutable state.
func fileFields() []field {
	return []field{
		{name: "node", kind: kindMap, fields: []field{
			{name: "name", kind: kindString, flag: "name", help: "name of this node, shown to people (default: the host name)"},
		}},
		{name: "data_dir", kind: kindString, flag: "data-dir", help: "directory of keys and durable state"},
		{name: "runtime_dir", kind: kindString, flag: "runtime-dir", help: "directory of the control socket and namespaces"},
		{name: "control", kind: kindMap, fields: []field{
			{name: "bind", kind: kindString, flag: "bind", help: "address:port to listen on for other members, TCP and UDP"},
			{name: "advertise", kind: kindString, flag: "advertise", help: "address:port at which others reach this node, or one of each family, comma-separated (default: derived)"},
			{name: "seeds", kind: kindStrings, flag: "seeds", help: "host:port of other members, comma-separated"},
			{name: "profile", kind: kindString, flag: "profile", help: "gossip timing: lan, wan or local"},
		}},
		{name: "data", kind: kindMap, fields: []field{
			{name: "port", kind: kindInt, flag: "data-port", help: "first of the three outer UDP ports of the tunnels"},
			{name: "vxlan_port", kind: kindInt, flag: "vxlan-port", help: "UDP port of VXLAN"},
		}},
		{name: "keys", kind: kindMap, fields: []field{
			{name: "rotate_every", kind: kindDuration, flag: "rotate-every", help: "how often keys change by themselves; 0: only on command"},
			{name: "min_interval", kind: kindDuration, flag: "keys-min-interval", help: "least time between two key epochs"},
			{name: "drain", kind: kindDuration, flag: "keys-drain", help: "how long an old epoch receives after both sides left it"},
			{name: "quiet", kind: kindDuration, flag: "keys-quiet", help: "how long an old epoch must be silent before it ends"},
			{name: "hold_down", kind: kindDuration, flag: "keys-hold-down", help: "how long an old epoch waits for a node that does not follow"},
			{name: "esp_max_packets", kind: kindInt, flag: "esp-max-packets", help: "packets under one ESP key before a new epoch starts"},
			{name: "esp_max_bytes", kind: kindInt, flag: "esp-max-bytes", help: "bytes under one ESP key before a new epoch starts"},
		}},
		{name: "crypto", kind: kindMap, fields: []field{
			{name: "require_pq", kind: kindBool, flag: "require-pq", help: "refuse nodes without post-quantum key agreement"},
			{name: "clock_tolerance", kind: kindDuration, flag: "clock-tolerance", help: "how far apart the clocks of two nodes may be"},
		}},
		{name: "ipsec", kind: kindMap, fields: []field{
			{name: "encap", kind: kindString, flag: "ipsec-encap", help: "what carries ESP: auto, none or udp"},
		}},
		{name: "metrics", kind: kindMap, fields: []field{
			{name: "listen", kind: kindString, flag: "metrics-listen", help: "loopback address:port for Prometheus (default: none, only the control socket)"},
		}},
		{name: "log", kind: kindMap, fields: []field{
			{name: "level", kind: kindString, flag: "log-level", help: "debug, info, warn or error"},
			{name: "format", kind: kindString, flag: "log-format", help: "text or json"},
		}},
		{name: "networks", kind: kindNetworks, fields: networkFields()},
	}
}

// networkFields returns the keys of one network.
func networkFields() []field {
	return []field{
		{name: "name", kind: kindString},
		{name: "vni", kind: kindInt},
		{name: "subnets", kind: kindStrings},
		{name: "encrypted", kind: kindEncrypted},
		{name: "mtu", kind: kindInt},
		{name: "driver", kind: kindString},
		{name: "gateways", kind: kindStrings},
		{name: "ip_ranges", kind: kindStrings},
		{name: "reserve", kind: kindStrings},
		{name: "internal", kind: kindBool},
		{name: "no_broadcast", kind: kindBool},
		{name: "labels", kind: kindStrings},
	}
}

// leaf is a setting that environment and flags can set, too.
type leaf struct {
	path string // control.bind
	kind kind
	flag string
	help string
}

// leaves flattens fileFields; networks are set in the file only.
func leaves() []leaf {
	var out []leaf
	for _, f := range fileFields() {
		switch f.kind {
		case kindNetworks:
		case kindMap:
			for _, g := range f.fields {
				out = append(out, leaf{path: f.name + "." + g.name, kind: g.kind, flag: g.flag, help: g.help})
			}
		default:
			out = append(out, leaf{path: f.name, kind: f.kind, flag: f.flag, help: f.help})
		}
	}
	return out
}

// env is the environment variable that sets the leaf.
func (l leaf) env() string {
	return envPrefix + strings.ToUpper(strings.ReplaceAll(l.path, ".", "_"))
}

// FlagInfo describes a command-line flag that sets a key of the file.
type FlagInfo struct {
	Flag    string // name without dashes
	Key     string // key of the file, such as control.bind
	Env     string // environment variable that sets it, too
	Help    string // one line
	Default string // text form of the default; empty if it is derived
	Bool    bool   // the flag needs no value: without one it means true
}

// Flags lists the flags that Source.Flags understands, in the order of the
// file.
func Flags() []FlagInfo {
	var out []FlagInfo
	def := defaults("")
	for _, l := range leaves() {
		out = append(out, FlagInfo{Flag: l.flag, Key: l.path, Env: l.env(), Help: l.help, Default: textOf(def[l.path]), Bool: l.kind == kindBool})
	}
	return out
}

// defaults returns the default of every leaf as the type its kind decodes to.
// The name comes from outside, since the host name is not a constant.
func defaults(name string) map[string]any {
	return map[string]any{
		"node.name":         name,
		"data_dir":          DefaultDataDir,
		"runtime_dir":       DefaultRuntimeDir,
		"control.bind":      "[::]:7946",
		"control.advertise": "",
		"control.seeds":     []string{},
		"control.profile":   ProfileLAN,
		"data.port":         int64(DefaultDataPort),
		"data.vxlan_port":   int64(DefaultVXLANPort),
		"log.level":         "info",
		"log.format":        "text",

		"keys.rotate_every":    12 * time.Hour,
		"keys.min_interval":    time.Minute,
		"keys.drain":           30 * time.Second,
		"keys.quiet":           10 * time.Second,
		"keys.hold_down":       24 * time.Hour,
		"keys.esp_max_packets": int64(MaxESPPackets),
		"keys.esp_max_bytes":   int64(MaxESPBytes),
		"crypto.require_pq":    false,
		"ipsec.encap":          EncapAuto,
		"metrics.listen":       "",

		"crypto.clock_tolerance": 5 * time.Minute,
	}
}

// localDefaults are the defaults that profile local has instead: what takes
// seconds between hosts takes a test on one machine a fraction of one.
func localDefaults() map[string]any {
	return map[string]any{
		"keys.min_interval": time.Duration(0),
		"keys.drain":        300 * time.Millisecond,
		"keys.quiet":        100 * time.Millisecond,
		"keys.hold_down":    30 * time.Second,
	}
}
