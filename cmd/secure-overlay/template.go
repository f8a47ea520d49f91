package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/google/renameio/v2"

	"github.com/secure-overlay/secure-overlay/config"
)

// newConfig is the text of a new configuration file: what most people set is
// live, everything else is shown commented out with its default.
func newConfig(cfg config.Config) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	// setting writes a key, commented out if the value is the default.
	setting := func(indent, key, value, def string) {
		if value == def {
			line("%s# %s: %s", indent, key, value)
		} else {
			line("%s%s: %s", indent, key, value)
		}
	}
	line("# Configuration of secure-overlay. Check it with: secure-overlay config validate")
	line("# Keys behind a # show their defaults.")
	line("")
	line("node:")
	line("  # Shown to people; goes into the certificate when the node joins.")
	line("  name: %s", strconv.Quote(cfg.Node.Name))
	line("")
	line("# Keys and durable state; control socket and namespaces.")
	setting("", "data_dir", strconv.Quote(cfg.DataDir), strconv.Quote(config.DefaultDataDir))
	setting("", "runtime_dir", strconv.Quote(cfg.RuntimeDir), strconv.Quote(config.DefaultRuntimeDir))
	line("")
	line("control:")
	line("  # Where to listen for other members, TCP and UDP.")
	setting("  ", "bind", strconv.Quote(cfg.Control.Bind.String()), `"[::]:7946"`)
	line("  # The address and port at which others reach this node; set it behind NAT. One of each family, with a comma between, if it has both.")
	if list := cfg.Control.Advertise; len(list) > 0 {
		text := list[0].String()
		for _, a := range list[1:] {
			text += ", " + a.String()
		}
		line("  advertise: %q", text)
	} else {
		line(`  # advertise: "192.0.2.10:7946"`)
	}
	line("  # Timing: lan, wan or local.")
	setting("  ", "profile", cfg.Control.Profile, config.ProfileLAN)
	line("")
	line("data:")
	line("  # First of three UDP ports of the tunnels, and the one of VXLAN.")
	setting("  ", "port", strconv.Itoa(int(cfg.Data.Port)), strconv.Itoa(config.DefaultDataPort))
	setting("  ", "vxlan_port", strconv.Itoa(int(cfg.Data.VXLANPort)), strconv.Itoa(config.DefaultVXLANPort))
	line("")
	line("keys:")
	line("  # How often they change by themselves; 0: only on command.")
	if !cfg.IsSet("keys.rotate_every") {
		line("  # rotate_every: 12h")
	}
	for _, l := range chosen(cfg, "keys") {
		line("%s", l)
	}
	line("")
	for _, group := range []string{"crypto", "ipsec", "metrics"} {
		if list := chosen(cfg, group); list != nil {
			line("%s:\n%s\n", group, strings.Join(list, "\n"))
		}
	}
	line("log:")
	setting("  ", "level", cfg.Log.Level, "info")
	setting("  ", "format", cfg.Log.Format, "text")
	line("")
	b.WriteString(networksTemplate)
	return b.String()
}

// chosen are the lines of those settings of a group that somebody set.
func chosen(cfg config.Config, group string) []string {
	var out []string
	for _, s := range cfg.Settings() {
		name, ok := strings.CutPrefix(s.Key, group+".")
		if !ok || !cfg.IsSet(s.Key) {
			continue
		}
		if strings.ContainsAny(s.Value, ":[]") {
			s.Value = strconv.Quote(s.Value) // an address
		}
		out = append(out, "  "+name+": "+s.Value)
	}
	return out
}

const networksTemplate = `# The networks of this node. Every node that has a network must define it alike
# (vni, subnets, encrypted). They are encrypted unless one says otherwise.
networks:
  - name: blue
    subnets: ["10.77.0.0/16", "fd77::/64"]
    # vni: 4097          # default: derived from the name
    # mtu: 1370          # default: derived from the underlay
    # driver: auto       # auto, wireguard (kernel only), userspace, ipsec, ipsec-userspace

  # A network that everyone on the path can read and forge:
  # - name: lab
  #   subnets: ["10.78.0.0/16"]
  #   encrypted: false
`

// writeNewConfig writes a configuration file if there is none, and reports
// whether it did. An existing file is never touched.
func writeNewConfig(path string, cfg config.Config) (bool, error) {
	if _, err := os.Lstat(path); err == nil {
		return false, nil
	} else if !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("write configuration: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return false, fmt.Errorf("write configuration: %w", err)
	}
	f, err := renameio.NewPendingFile(path, renameio.WithPermissions(0o644))
	if err != nil {
		return false, fmt.Errorf("write configuration: %w", err)
	}
	defer func() { _ = f.Cleanup() }()
	if _, err := f.WriteString(newConfig(cfg)); err != nil {
		return false, fmt.Errorf("write configuration: %w", err)
	}
	// Link, unlike rename, fails if somebody made the file meanwhile.
	if err := f.Sync(); err != nil {
		return false, fmt.Errorf("write configuration: %w", err)
	}
	err = os.Link(f.Name(), path)
	if errors.Is(err, os.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("write configuration: %w", err)
	}
	return true, nil
}
