package config

import "strings"

// kind is the YAML type that a key takes.
type kind int

const (
	kindMap kind = iota
	kindString
	kindInt
	kindBool
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
	case kindBool:
		return "true or false"
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
			{name: "advertise", kind: kindString, flag: "advertise", help: "address:port at which others reach this node (default: derived)"},
			{name: "seeds", kind: kindStrings, flag: "seeds", help: "host:port of other members, comma-separated"},
			{name: "profile", kind: kindString, flag: "profile", help: "gossip timing: lan, wan or local"},
		}},
		{name: "data", kind: kindMap, fields: []field{
			{name: "port", kind: kindInt, flag: "data-port", help: "outer UDP port of the tunnels"},
			{name: "vxlan_port", kind: kindInt, flag: "vxlan-port", help: "UDP port of VXLAN"},
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
		{name: "encrypted", kind: kindBool},
		{name: "mtu", kind: kindInt},
		{name: "driver", kind: kindString},
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
}

// Flags lists the flags that Source.Flags understands, in the order of the
// file.
func Flags() []FlagInfo {
	var out []FlagInfo
	def := defaults("")
	for _, l := range leaves() {
		out = append(out, FlagInfo{Flag: l.flag, Key: l.path, Env: l.env(), Help: l.help, Default: textOf(def[l.path])})
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
	}
}
