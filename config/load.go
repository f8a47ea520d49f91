package config

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/go-viper/mapstructure/v2"
	"github.com/spf13/viper"

	"github.com/secure-overlay/secure-overlay/internal/nearest"
)

// maxFileSize bounds what is read: 256 networks with every key are 60 KiB.
const maxFileSize = 1 << 20

// Load reads, merges and checks a configuration. The error is *Problems if
// the content is at fault, and a plain error if the file cannot be read.
func Load(src Source) (Config, error) {
	var data []byte
	var early []Problem
	if src.Path != "" {
		var err error
		if data, early, err = readFile(src.Path); err != nil {
			return Config{}, err
		}
	}
	return parse(src, data, early)
}

// readFile reads a configuration file and reports who else could write it.
func readFile(path string) ([]byte, []Problem, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, fmt.Errorf("read configuration: %w", err)
	}
	defer func() { _ = f.Close() }()
	// The open file is examined, not the path: nobody can exchange it
	// between the check and the reading.
	st, err := f.Stat()
	if err != nil {
		return nil, nil, fmt.Errorf("read configuration: %w", err)
	}
	if !st.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("read configuration %s: not a regular file", path)
	}
	var problems []Problem
	// Whoever can write the file can turn encryption off: that must be
	// nobody but its owner.
	if perm := st.Mode().Perm(); perm&0o022 != 0 {
		problems = append(problems, Problem{
			File: path, Problem: fmt.Sprintf("users other than the owner may write the file (mode %04o)", perm),
			Hint: "chmod go-w " + path,
		})
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFileSize+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read configuration: %w", err)
	}
	if len(data) > maxFileSize {
		return nil, nil, fmt.Errorf("read configuration %s: larger than %d bytes", path, maxFileSize)
	}
	return data, problems, nil
}

// parse is Load without the file system (but for the host name).
func parse(src Source, data []byte, early []Problem) (Config, error) {
	doc := newDocument(src.Path)
	if src.Path != "" {
		doc = parseDocument(src.Path, data)
	}
	c := &checker{doc: doc, problems: append(early, doc.problems...), place: map[string]place{}}
	raw, err := c.merge(src)
	if err != nil {
		return Config{}, err
	}
	cfg := c.check(raw)
	cfg.Path = src.Path
	if len(c.problems) > 0 {
		return Config{}, newProblems(c.problems)
	}
	cfg.origins = c.origins()
	return cfg, nil
}

// rawConfig mirrors the file. Pointers tell absent from zero: an absent
// `encrypted` must never read as false.
type rawConfig struct {
	Node struct {
		Name string
	}
	DataDir    string `mapstructure:"data_dir"`
	RuntimeDir string `mapstructure:"runtime_dir"`
	Control    struct {
		Bind, Advertise string
		Seeds           []string
		Profile         string
	}
	Data struct {
		Port      int64
		VXLANPort int64 `mapstructure:"vxlan_port"`
	}
	Keys struct {
		RotateEvery   time.Duration `mapstructure:"rotate_every"`
		MinInterval   time.Duration `mapstructure:"min_interval"`
		Drain, Quiet  time.Duration
		HoldDown      time.Duration `mapstructure:"hold_down"`
		ESPMaxPackets int64         `mapstructure:"esp_max_packets"`
		ESPMaxBytes   int64         `mapstructure:"esp_max_bytes"`
	}
	Crypto struct {
		RequirePQ      bool          `mapstructure:"require_pq"`
		ClockTolerance time.Duration `mapstructure:"clock_tolerance"`
	}
	IPsec struct {
		Encap string
	}
	Metrics struct {
		Listen string
	}
	Log struct {
		Level, Format string
	}
	Networks []rawNetwork
}

type rawNetwork struct {
	Name      *string
	VNI       *int64
	Subnets   []string
	Encrypted *bool
	MTU       *int64
	Driver    *string

	Gateways    []string
	Ranges      []string `mapstructure:"ip_ranges"`
	Reserved    []string `mapstructure:"reserve"`
	Internal    *bool
	NoBroadcast *bool `mapstructure:"no_broadcast"`
	Labels      []string
}

// delimiter separates the levels of viper's keys. The usual dot would split
// names that contain one.
const delimiter = "::"

func viperKey(path string) string { return strings.ReplaceAll(path, ".", delimiter) }

// merge lets viper put defaults, file, environment and flags on top of each
// other and decodes the result exactly. What goes in has been checked, so a
// decoding error is a bug of this package.
func (c *checker) merge(src Source) (rawConfig, error) {
	v := viper.NewWithOptions(viper.KeyDelimiter(delimiter))
	for path, val := range defaults(defaultName()) {
		v.SetDefault(viperKey(path), val)
	}
	if err := v.MergeConfigMap(c.doc.tree); err != nil {
		return rawConfig{}, fmt.Errorf("merge configuration: %w", err)
	}
	for path := range c.doc.line {
		c.place[path] = place{file: src.Path, line: c.doc.line[path], key: path}
	}
	for path, o := range c.overrides(src) {
		v.Set(viperKey(path), o.value)
		// The file's list items are out of force together with their list.
		maps.DeleteFunc(c.place, func(p string, _ place) bool { return strings.HasPrefix(p, path+"[") })
		c.place[path] = o.place
	}
	if v.GetString(viperKey("control.profile")) == ProfileLocal {
		for path, val := range localDefaults() {
			v.SetDefault(viperKey(path), val)
			if _, set := c.place[path]; !set {
				c.place[path] = place{key: path, origin: originLocal}
			}
		}
	}
	var raw rawConfig
	err := v.UnmarshalExact(&raw, func(dc *mapstructure.DecoderConfig) {
		dc.WeaklyTypedInput = false
		dc.DecodeHook = nil
	})
	if err != nil {
		return rawConfig{}, fmt.Errorf("decode configuration: %w", err)
	}
	return raw, nil
}

// defaultName is the host name, made valid if it is not.
func defaultName() string {
	host, err := os.Hostname()
	if err != nil {
		return "node"
	}
	host = strings.Map(func(r rune) rune {
		if r < 0x80 && nameRune(byte(r)) {
			return r
		}
		return '-'
	}, host)
	host = strings.TrimLeft(host, "-._")
	if host = host[:min(len(host), maxName)]; !validName(host) {
		return "node"
	}
	return host
}

// override is a value from outside the file.
type override struct {
	value any
	place place
}

const envPrefix = "SECURE_OVERLAY_"

// otherEnv are the variables with our prefix that set no key of the file.
// Those starting with envPrefix + "TEST_" belong to the test suites.
func otherEnv() []string {
	return []string{envPrefix + "CONFIG", envPrefix + "BIN", envPrefix + "TOKEN", envPrefix + "ROOT_PASSPHRASE"}
}

// overrides collects environment variables and then flags, so that a flag
// wins. Unknown variables with our prefix are problems: a misspelt one would
// otherwise be ignored in silence.
func (c *checker) overrides(src Source) map[string]override {
	out := map[string]override{}
	byEnv, byFlag := map[string]leaf{}, map[string]leaf{}
	for _, l := range leaves() {
		byEnv[l.env()] = l
		byFlag[l.flag] = l
	}
	for _, kv := range src.Env {
		name, val, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, envPrefix) || strings.HasPrefix(name, envPrefix+"TEST_") || slices.Contains(otherEnv(), name) {
			continue
		}
		l, ok := byEnv[name]
		if !ok {
			hint := "unset it"
			if near, found := nearest.Of(name, append(slices.Sorted(maps.Keys(byEnv)), otherEnv()...)); found {
				hint = "did you mean " + near + "?"
			}
			c.problems = append(c.problems, Problem{Key: name, Problem: "unknown environment variable", Hint: hint})
			continue
		}
		if o, ok := c.fromText(l, val, place{key: name, origin: Origin("env " + name)}); ok {
			out[l.path] = o
		}
	}
	for _, name := range slices.Sorted(maps.Keys(src.Flags)) {
		l, ok := byFlag[name]
		if !ok {
			c.problems = append(c.problems, Problem{Key: "--" + name, Problem: "the flag sets no key of the configuration"})
			continue
		}
		if o, ok := c.fromText(l, src.Flags[name], place{key: "--" + name, origin: Origin("flag --" + name)}); ok {
			out[l.path] = o
		}
	}
	return out
}

// fromText reads a value of a variable or flag as the kind of its key.
func (c *checker) fromText(l leaf, val string, at place) (override, bool) {
	if strings.TrimSpace(val) == "" {
		c.report(at, "the value is empty", "give it a value or leave it out")
		return override{}, false
	}
	switch l.kind {
	case kindInt:
		n, err := strconv.ParseInt(val, 10, 64)
		if err != nil {
			c.report(at, fmt.Sprintf("want a whole number, have %q", shorten(val)), "")
			return override{}, false
		}
		return override{n, at}, true
	case kindBool:
		if val != "true" && val != "false" {
			c.report(at, fmt.Sprintf("want true or false, have %q", shorten(val)), boolHint(val))
			return override{}, false
		}
		return override{val == "true", at}, true
	case kindDuration:
		d, problem, hint := parseDuration(val)
		if problem != "" {
			c.report(at, problem, hint)
			return override{}, false
		}
		return override{d, at}, true
	case kindStrings:
		var list []string
		for s := range strings.SplitSeq(val, ",") {
			list = append(list, strings.TrimSpace(s))
		}
		return override{list, at}, true
	default:
		return override{val, at}, true
	}
}

// AsProblems returns the problems in err's chain, or nil.
func AsProblems(err error) []Problem {
	var p *Problems
	if errors.As(err, &p) {
		return p.List
	}
	return nil
}
