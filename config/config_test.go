package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

var compare = []cmp.Option{
	cmpopts.IgnoreUnexported(Config{}), cmpopts.EquateEmpty(),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
}

func load(t *testing.T, text string, env ...string) (Config, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return Load(Source{Path: path, Env: env})
}

// report is the problems without the folder of the file.
func report(t *testing.T, err error) string {
	t.Helper()
	var p *Problems
	if !errors.As(err, &p) {
		t.Fatalf("error %v is not *Problems", err)
	}
	var lines []string
	for _, q := range p.List {
		if q.File != "" {
			q.File = filepath.Base(q.File)
		}
		lines = append(lines, q.String())
	}
	return strings.Join(lines, "\n")
}

func TestReferenceLoadsToDefaults(t *testing.T) {
	want, err := Load(Source{})
	if err != nil {
		t.Fatal(err)
	}
	const path = "testdata/reference.yaml"
	got, err := Load(Source{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	want.Path = path
	if d := cmp.Diff(want, got, compare...); d != "" {
		t.Errorf("reference differs from the defaults (-default +reference):\n%s", d)
	}
	def := Config{
		Path: path, Node: Node{Name: defaultName()}, DataDir: DefaultDataDir, RuntimeDir: DefaultRuntimeDir,
		Control: Control{Bind: netip.MustParseAddrPort("[::]:7946"), Profile: ProfileLAN},
		Data:    Data{Port: DefaultDataPort, VXLANPort: DefaultVXLANPort},
		Keys: Keys{
			RotateEvery: 12 * time.Hour, MinInterval: time.Minute, Drain: 30 * time.Second, Quiet: 10 * time.Second, HoldDown: 24 * time.Hour,
			ESPMaxPackets: 1 << 36, ESPMaxBytes: 1 << 44,
		},
		Crypto: Crypto{ClockTolerance: 5 * time.Minute},
		IPsec:  IPsec{Encap: EncapAuto},
		Log:    Log{Level: "info", Format: "text"},
	}
	if d := cmp.Diff(def, got, compare...); d != "" {
		t.Errorf("defaults changed (-want +got):\n%s", d)
	}
}

// Every key stands in the reference, live or commented out, and the commented
// part is valid, too.
func TestReferenceNamesEveryKey(t *testing.T) {
	raw, err := os.ReadFile("testdata/reference.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range allPaths() {
		key := p[strings.LastIndexByte(p, '.')+1:]
		if !regexp.MustCompile(`(?m)^[ #-]*\b` + key + `: `).Match(raw) {
			t.Errorf("the reference does not show %s", p)
		}
	}
	text := strings.Replace(string(raw), "networks: []\n", "", 1)
	text = regexp.MustCompile(`(?m)^# (networks:|    ? ?[- ]+(# |name:|vni:|subnets:|encrypted:|mtu:|driver:).*|  - # .*)$`).ReplaceAllString(text, "$1")
	text = regexp.MustCompile(`(?m)^  # (name:|advertise:|listen:)`).ReplaceAllString(text, "  $1")
	cfg, err := load(t, text)
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if cfg.Node.Name != "web-1" || len(cfg.Control.Advertise) != 1 || !cfg.Metrics.Listen.IsValid() || len(cfg.Networks) != 1 || cfg.Networks[0].VNI != 4097 {
		t.Errorf("uncommented reference = %+v", cfg)
	}
}

func TestFull(t *testing.T) {
	cfg, err := load(t, `
node: {name: web-1}
control:
  bind: 10.0.0.1:7946
  seeds: ["10.0.0.2:7946", db.example.net:7946, "[fd00::2]:7946"]
networks:
  - name: Blue.Team
    subnets: [10.77.0.0/16, "fd77::/64"]
  - name: lab
    vni: 77
    subnets: [10.78.0.0/16]
    encrypted: false
  - {name: green, subnets: [10.79.0.0/16], encrypted: true, mtu: 1300, driver: userspace}
`, "HOME=/root", "SECURE_OVERLAY_TEST_X=1", "SECURE_OVERLAY_DATA_PORT=5000")
	if err != nil {
		t.Fatal(err)
	}
	want := []Network{
		{Name: "Blue.Team", VNI: ids.DeriveVNI("Blue.Team"), Encrypted: true, Driver: DriverAuto,
			Subnets: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/64")}},
		{Name: "lab", VNI: 77, Driver: DriverAuto, Subnets: []netip.Prefix{netip.MustParsePrefix("10.78.0.0/16")}},
		{Name: "green", VNI: ids.DeriveVNI("green"), Encrypted: true, MTU: 1300, Driver: DriverUserspace,
			Subnets: []netip.Prefix{netip.MustParsePrefix("10.79.0.0/16")}},
	}
	if d := cmp.Diff(want, cfg.Networks, compare...); d != "" {
		t.Error(d)
	}
	if cfg.Driver() != DriverUserspace || !cfg.AnyEncrypted() || cfg.Data.Port != 5000 {
		t.Errorf("driver %s, encrypted %v, port %d", cfg.Driver(), cfg.AnyEncrypted(), cfg.Data.Port)
	}
	if n, ok := cfg.Network("lab"); !ok || n.VNI != 77 {
		t.Errorf("Network(lab) = %v, %v", n, ok)
	}
	if _, ok := cfg.Network("LAB"); ok {
		t.Error("Network(LAB) found lab")
	}
}

func TestPrecedenceAndOrigin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.yaml")
	if err := os.WriteFile(path, []byte("data:\n  port: 1001\n  vxlan_port: 1002\nlog: {level: debug}\ncontrol: {seeds: [a:1, b:2]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg, err := Load(Source{
		Path: path, Env: []string{"SECURE_OVERLAY_DATA_PORT=2001", "SECURE_OVERLAY_DATA_VXLAN_PORT=2002", "SECURE_OVERLAY_CONTROL_SEEDS=c:3, d:4"},
		Flags: map[string]string{"data-port": "3001"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if cfg.Data.Port != 3001 || cfg.Data.VXLANPort != 2002 || cfg.Log.Level != "debug" || cfg.Log.Format != "text" {
		t.Errorf("got %+v %+v", cfg.Data, cfg.Log)
	}
	if d := cmp.Diff([]string{"c:3", "d:4"}, cfg.Control.Seeds); d != "" {
		t.Error(d)
	}
	for key, want := range map[string]Origin{
		"data.port": "flag --data-port", "data.vxlan_port": "env SECURE_OVERLAY_DATA_VXLAN_PORT",
		"log.level": Origin(path + ":4"), "log.format": OriginDefault, "control.seeds": "env SECURE_OVERLAY_CONTROL_SEEDS",
	} {
		if got := cfg.Origin(key); got != want {
			t.Errorf("origin of %s = %q, want %q", key, got, want)
		}
	}
	for _, s := range cfg.Settings() {
		if s.Key == "data.port" && (s.Value != "3001" || s.Origin != "flag --data-port") {
			t.Errorf("setting %+v", s)
		}
	}
}

func TestEnvAndFlagProblems(t *testing.T) {
	_, err := Load(Source{
		Env:   []string{"SECURE_OVERLAY_CONTROL_BIN=[::]:1", "SECURE_OVERLAY_DATA_PORT=x", "SECURE_OVERLAY_NODE_NAME=", "SECURE_OVERLAY_CONTROL_SEEDS=a:1,,b"},
		Flags: map[string]string{"log-level": "inof", "nosuch": "1"},
	})
	want := `SECURE_OVERLAY_CONTROL_BIN: unknown environment variable (did you mean SECURE_OVERLAY_CONTROL_BIND?)
SECURE_OVERLAY_DATA_PORT: want a whole number, have "x"
SECURE_OVERLAY_NODE_NAME: the value is empty (give it a value or leave it out)
--nosuch: the flag sets no key of the configuration
SECURE_OVERLAY_CONTROL_SEEDS: "" is not host:port (for example "10.0.0.11:7946")
SECURE_OVERLAY_CONTROL_SEEDS: "b" has no port (write "b:7946")
--log-level: unknown value "inof" (did you mean "info"? one of debug, info, warn, error)`
	if d := cmp.Diff(want, report(t, err)); d != "" {
		t.Error(d)
	}
}

func TestFilePermissions(t *testing.T) {
	for _, mode := range []os.FileMode{0o620, 0o602, 0o666} {
		path := filepath.Join(t.TempDir(), "c.yaml")
		if err := os.WriteFile(path, []byte("netwroks: []\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := Load(Source{Path: path})
		got := report(t, err)
		if !strings.Contains(got, "may write the file") || !strings.Contains(got, "chmod go-w") || !strings.Contains(got, "unknown key") {
			t.Errorf("mode %04o: %s", mode, got)
		}
	}
}

func TestUnreadable(t *testing.T) {
	if _, err := Load(Source{Path: filepath.Join(t.TempDir(), "none")}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if _, err := Load(Source{Path: t.TempDir()}); err == nil || AsProblems(err) != nil {
		t.Errorf("folder: %v", err)
	}
	big := filepath.Join(t.TempDir(), "big")
	if err := os.WriteFile(big, []byte(strings.Repeat("#\n", maxFileSize)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(Source{Path: big}); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("big file: %v", err)
	}
}
