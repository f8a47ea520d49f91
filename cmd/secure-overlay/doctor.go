package main

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/internal/doctor"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/ipsec"
)

// vxlanOverhead is what VXLAN adds to a packet inside a tunnel: the IPv6, UDP
// and VXLAN headers and the inner Ethernet header (RFC 7348).
const vxlanOverhead = 40 + 8 + 8 + 14

// diagnosis is what doctor prints for programs.
type diagnosis struct {
	Schema   int              `json:"schema"`
	Level    doctor.Level     `json:"level"`
	Findings []doctor.Finding `json:"findings"`
}

func (a *app) doctorCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "doctor", Short: "Look for what keeps the agent from working, and say how to fix it", Args: args(),
		Long: `Look for what keeps the agent from working, and say how to fix it: kernel
features, what each tunnel driver lacks, capabilities, ports, MTU, identity, clock.

Exit code 0 if the agent can work, 1 if it cannot.`,
	}
	format := a.output(cmd)
	flags := settingFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		list, err := a.diagnose(cmd.Context(), flags())
		if err != nil {
			return err
		}
		d := diagnosis{Schema: api.Schema, Level: doctor.Worst(list), Findings: list}
		if err := a.show(*format, d, anys(list), func() error { return a.findings(list) }); err != nil {
			return err
		}
		if d.Level == doctor.Fail {
			return &exitError{api.CodeFailed.ExitCode()}
		}
		return nil
	}
	return cmd
}

// diagnose adds what the configuration and the data directory say to the
// checks of the machine. A broken configuration is a finding: the rest is
// checked with the defaults.
func (a *app) diagnose(ctx context.Context, flags map[string]string) ([]doctor.Finding, error) {
	var head []doctor.Finding
	src := a.source(flags)
	cfg, err := config.Load(src)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		head = append(head, doctor.Finding{Name: "configuration", Level: doctor.Fail, Detail: "there is no file " + src.Path, Fix: "secure-overlay init -c " + src.Path})
		if cfg, err = config.Load(config.Source{}); err != nil {
			return nil, err
		}
	case err != nil:
		head = append(head, doctor.Finding{Name: "configuration", Level: doctor.Fail, Detail: firstLine(err), Fix: "secure-overlay config validate " + src.Path})
		if cfg, err = config.Load(config.Source{}); err != nil {
			return nil, err
		}
	case src.Path == "":
		head = append(head, doctor.Finding{Name: "configuration", Level: doctor.Warn, Detail: "there is no file " + config.DefaultPath, Fix: "secure-overlay init, or secure-overlay join TOKEN"})
	default:
		head = append(head, doctor.Finding{Name: "configuration", Level: doctor.OK, Detail: src.Path + ": " + cli.Plural(len(cfg.Networks), "network")})
	}
	running, told := a.askAgent(ctx, cfg)
	head = append(head, identityFindings(cfg, running)...)
	head = append(head, agentFinding(running))
	head = append(head, told...)
	env, closeEnv, err := probeEnv()
	if err != nil {
		return nil, err
	}
	defer closeEnv()
	return append(head, doctor.Run(ctx, doctorOptions(cfg, env, running))...), nil
}

// askAgent reports whether an agent runs, and what only that knows: how the clock
// does, and in which form ESP reaches which node.
func (a *app) askAgent(ctx context.Context, cfg config.Config) (running bool, found []doctor.Finding) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second) // a busy one takes its time
	defer cancel()
	c := api.NewClient(cfg.SocketPath())
	defer c.Close()
	st, err := c.Status(ctx)
	if err != nil {
		return false, nil
	}
	k, err := c.Keys(ctx)
	if err != nil {
		k = api.KeyStatus{} // status has the problems
	}
	return true, append([]doctor.Finding{clockFinding(st.Clock, st.Problems)}, espPeers(cfg, k, st.Problems)...)
}

// clockFinding says how the system clock does, as a running agent sees it.
func clockFinding(c api.Clock, problems []api.Problem) doctor.Finding {
	f := doctor.Finding{Name: "clock", Level: doctor.OK}
	for _, p := range problems {
		if strings.HasPrefix(p.Code, "clock-") {
			f.Level, f.Detail, f.Fix = doctor.Warn, p.Message+"; ", "set the clock, best with a time service (chrony, systemd-timesyncd)"
		}
	}
	var parts []string
	say := func(d api.Duration, what string) {
		if d != 0 {
			parts = append(parts, time.Duration(d).Round(time.Second).String()+" "+what)
		}
	}
	say(c.Behind, "behind the trusted time")
	say(max(c.Jumped, 0), "ahead of where it should be")
	say(max(-c.Jumped, 0), "behind where it should be")
	if time.Duration(c.Ahead).Abs() > 2*time.Second { // what they say is a second old, and in whole ones
		say(max(c.Ahead, 0), "ahead of most of "+cli.Plural(c.Others, "other node"))
		say(max(-c.Ahead, 0), "behind most of "+cli.Plural(c.Others, "other node"))
	}
	switch {
	case len(parts) > 0:
		f.Detail += "it is " + strings.Join(parts, ", ")
	case c.Others > 0:
		f.Detail += "as those of most of " + cli.Plural(c.Others, "other node")
	default:
		f.Detail += "no other node has said what its clock shows"
	}
	return f
}

// storedClockFinding compares the system clock with the trusted time on disk, for
// which no agent is needed.
func storedClockFinding(trusted, now time.Time, tolerance time.Duration) doctor.Finding {
	f := doctor.Finding{Name: "clock", Level: doctor.OK, Detail: "not before " + trusted.UTC().Format(time.RFC3339) + ", which has certainly passed"}
	if behind := trusted.Sub(now); behind > tolerance {
		f.Level = doctor.Warn
		f.Detail = "the system clock is " + behind.Round(time.Second).String() + " behind a time that has certainly passed; certificates are judged by that instead"
		f.Fix = "set the clock, best with a time service (chrony, systemd-timesyncd)"
	}
	return f
}

// espPeers says which nodes ESP does not reach, and which it reaches in UDP only.
func espPeers(cfg config.Config, k api.KeyStatus, problems []api.Problem) (found []doctor.Finding) {
	for _, p := range problems {
		if p.Code == "esp-blocked" {
			found = append(found, doctor.Finding{Name: "esp peers", Level: doctor.Warn, Detail: p.Message, Fix: p.Fix})
		}
	}
	names := map[bool][]string{} // by whether the pair has nothing but ESP in UDP
	for _, p := range k.Peers {
		if only := p.UDPOnly || cfg.IPsec.Encap == config.EncapUDP; p.InUDP {
			names[only] = append(names[only], cmp.Or(p.Name, p.ID.Short()))
		}
	}
	if only := names[true]; len(only) > 0 {
		f := doctor.Finding{Name: "esp peers", Level: doctor.OK, Detail: "ESP in UDP with " + strings.Join(only, ", ")}
		f.Detail += ": these nodes, or this one, have nothing else (driver ipsec-userspace, or ipsec.encap is udp)"
		found = append(found, f)
	}
	if fell := names[false]; len(fell) > 0 {
		found = append(found, doctor.Finding{
			Name: "esp peers", Level: doctor.Warn, Detail: "ESP in UDP with " + strings.Join(fell, ", ") + ": probes over ESP as it is got no answer",
			Fix: "let IP protocol 50 through between these nodes, if you can: a pair tries it again at a rotation, a day after it went over to UDP",
		})
	}
	return found
}

func agentFinding(running bool) doctor.Finding {
	if running {
		return doctor.Finding{Name: "agent", Level: doctor.OK, Detail: "running; see: secure-overlay status"}
	}
	return doctor.Finding{Name: "agent", Level: doctor.OK, Detail: "not running"}
}

// identityFindings looks into the data directory, unless an agent holds it.
func identityFindings(cfg config.Config, running bool) []doctor.Finding {
	f := doctor.Finding{Name: "identity", Level: doctor.OK, Detail: cfg.DataDir}
	if running {
		return []doctor.Finding{f}
	}
	store, err := keystore.Open(cfg.DataDir)
	if err != nil {
		f.Level, f.Detail, f.Fix = doctor.Fail, firstLine(err), "secure-overlay init, or secure-overlay join TOKEN"
		switch {
		case errors.Is(err, keystore.ErrNotInitialised):
			f.Level = doctor.Warn
		case errors.Is(err, os.ErrPermission):
			f.Level, f.Fix = doctor.Warn, "run the command with sudo"
		case errors.Is(err, keystore.ErrLocked), errors.Is(err, keystore.ErrUnsafe), errors.Is(err, keystore.ErrCorrupt), errors.Is(err, keystore.ErrNewerVersion):
			f.Fix = "see the message"
		}
		return []doctor.Finding{f}
	}
	for _, w := range store.Warnings() {
		f.Level, f.Detail, f.Fix = doctor.Warn, w, "see the message"
	}
	clock := storedClockFinding(store.TrustedTime(), time.Now(), cfg.Crypto.ClockTolerance)
	if err := store.Close(); err != nil {
		f.Level, f.Detail, f.Fix = doctor.Fail, firstLine(err), "check the file system of "+cfg.DataDir
	}
	return []doctor.Finding{f, clock}
}

// probeEnv is what drivers are probed in: they make nothing that stays.
func probeEnv() (tunnel.Env, func(), error) {
	here, err := nl.CurrentNamespace()
	if err != nil {
		return tunnel.Env{}, nil, err
	}
	return tunnel.Env{Node: ids.NodeID{}, Host: here}, func() { _ = here.Close() }, nil
}

func doctorOptions(cfg config.Config, env tunnel.Env, running bool) doctor.Options {
	o := doctor.Options{Control: cfg.Control.Bind, AgentRunning: running, MTUs: map[string]int{}}
	for i := range uint16(config.DataPorts) {
		o.DataPorts = append(o.DataPorts, cfg.Data.Port+i)
	}
	o.ESP = &doctor.ESP{Wanted: cfg.Driver() == config.DriverIPsec}
	if cfg.IPsec.Encap != config.EncapNone {
		o.ESP.Port, o.ESP.PortOptional = ipsec.DefaultPort, cfg.IPsec.Encap == config.EncapAuto
	}
	for _, k := range kinds(cfg) {
		o.Drivers = append(o.Drivers, doctor.Driver{
			Name: k.Name, Wanted: cfg.Driver() == k.Name, Fix: driverFix(k.Name),
			Probe: func(ctx context.Context) error { return k.Probe(ctx, env) }, Slower: k.Slower,
		})
	}
	o.InnerMTU = func(underlay int, via netip.Addr) int {
		return underlay - tunnel.Overhead(via) - vxlanOverhead
	}
	for _, n := range cfg.Networks {
		if !n.Encrypted {
			o.VXLANPort = cfg.Data.VXLANPort
			continue
		}
		if n.MTU > 0 {
			o.MTUs[n.Name] = n.MTU
		}
	}
	for _, s := range cfg.Control.Seeds {
		if ap, err := netip.ParseAddrPort(s); err == nil {
			o.Peers = append(o.Peers, ap.Addr())
		}
	}
	return o
}

func driverFix(name string) string {
	switch name {
	case config.DriverWireGuard:
		return "modprobe wireguard (Linux 5.6 or newer); until then userspace WireGuard does the work, more slowly"
	case config.DriverUserspace, config.DriverIPsecUser:
		return "modprobe tun"
	default:
		return "see the message"
	}
}

func (a *app) findings(list []doctor.Finding) error {
	t := cli.NewTable("level", "check", "found")
	style := map[doctor.Level]cli.Style{doctor.OK: cli.Good, doctor.Warn: cli.Warn, doctor.Fail: cli.Bad}
	for _, f := range list {
		t.Row(cli.Cell{Text: string(f.Level), Style: style[f.Level]}, f.Name, f.Detail)
	}
	if err := t.Print(a.out); err != nil {
		return err
	}
	for _, f := range list {
		if f.Level != doctor.OK {
			a.print("\n%s  %s: %s\n    fix  %s", a.out.Paint(style[f.Level], string(f.Level)), cli.Clean(f.Name), cli.Clean(f.Detail), cli.Clean(f.Fix))
		}
	}
	return nil
}

// firstLine shortens an error to its first line.
func firstLine(err error) string {
	s := err.Error()
	for i, r := range s {
		if r == '\n' {
			return s[:i] + " (and more)"
		}
	}
	return s
}
