package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/user"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/agent"
	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/api/metrics"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/doctor"
	"github.com/secure-overlay/secure-overlay/internal/events"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys/clock"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/espuser"
	"github.com/secure-overlay/secure-overlay/tunnel/ipsec"
	"github.com/secure-overlay/secure-overlay/tunnel/wgkernel"
	"github.com/secure-overlay/secure-overlay/tunnel/wguser"
)

// socketGroup is the group whose members may read from the control socket,
// if the machine has it.
const socketGroup = "secure-overlay"

// kinds is the table of tunnel drivers, in the order in which auto tries
// them. There is no plaintext driver to fall back to.
func kinds(cfg config.Config) []tunnel.Kind {
	return []tunnel.Kind{
		wgkernel.Kind(), wguser.Kind(wguser.Options{Worker: workerCommand()}),
		ipsec.Kind(ipsec.Options{Encap: espForms(cfg.IPsec.Encap), Worker: holderCommand()}),
		espuser.Kind(espuser.Options{Worker: espWorkerCommand()}),
	}
}

// espForms says in the driver's words how ESP may travel.
func espForms(encap string) ipsec.Encap {
	switch encap {
	case config.EncapUDP:
		return ipsec.EncapUDP
	case config.EncapAuto:
		return ipsec.EncapAuto
	default:
		return ipsec.EncapNone
	}
}

func (a *app) upCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run the agent",
		Long: `Run the agent: join the other nodes and make the networks of the configuration.

In the foreground it prints what it does, then its log. Ended by a signal it
leaves the networks up, for the next agent to take over; "down" removes them.
With --detach it returns when the agent is ready, or with the reason why not.`,
		Args: args(),
	}
	flags := settingFlags(cmd)
	f := cmd.Flags()
	detach := f.Bool("detach", false, "run in the background; return when ready")
	timeout := f.Duration("timeout", time.Minute, "with --detach: how long to wait until it is ready")
	dryRun := f.Bool("dry-run", false, "print the kernel objects that would be made, and make none")
	notify := f.Int("notify-fd", -1, "")
	_ = f.MarkHidden("notify-fd")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		set := flags()
		load := func() (config.Config, error) { return a.load(set) }
		cfg, err := load()
		if err != nil && *notify < 0 {
			return err
		}
		switch {
		case *notify >= 0:
			return a.background(cmd.Context(), cfg, err, *notify, load)
		case *dryRun:
			return a.dryRun(cfg)
		}
		if err := preflight(cfg); err != nil {
			return err
		}
		if *detach {
			return a.detach(cmd.Context(), cfg, *timeout)
		}
		return a.foreground(cmd.Context(), cfg, load)
	}
	return cmd
}

// preflight refuses what cannot work before anything is made.
func preflight(cfg config.Config) error {
	if missing := doctor.MissingCapabilities(); len(missing) > 0 {
		return fail(api.CodePermission, "run the command with sudo", "the agent needs %s", strings.Join(missing, ", "))
	}
	if cfg.Path == "" {
		return fail(api.CodeInvalid, "secure-overlay init, or name the file with -c FILE", "there is no configuration file %s", config.DefaultPath)
	}
	return nil
}

func (a *app) dryRun(cfg config.Config) error {
	var id ids.NodeID // zero if there is no identity yet
	if store, err := keystore.Open(cfg.DataDir); err == nil {
		if self, err := store.Identity(); err == nil {
			id = self.ID
		}
		_ = store.Close()
	}
	for _, line := range agent.DryRun(cfg, id) {
		a.print("%s", line)
	}
	return nil
}

// reporter hears about the start of the agent.
type reporter interface {
	Step(agent.Step)
	Ready()
}

// runAgent puts the agent together and runs it until ctx ends or `down` is
// called.
func runAgent(ctx context.Context, cfg config.Config, again reloading, log *slog.Logger, r reporter) (err error) {
	if err := os.MkdirAll(cfg.RuntimeDir, 0o750); err != nil {
		return fmt.Errorf("make runtime directory: %w", err)
	}
	store, err := openStore(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	for _, w := range store.Warnings() {
		r.Step(agent.Step{Name: "keys", State: agent.StepWarning, Detail: w})
	}
	// Nothing depends on the event log: without it the agent runs all the same.
	eventLog, err := events.Open(cfg.DataDir)
	if err != nil {
		r.Step(agent.Step{Name: "event log", State: agent.StepWarning, Detail: err.Error()})
	} else {
		defer func() { err = errors.Join(err, eventLog.Close()) }()
	}
	trusted, err := trustedClock(cfg, store)
	if err != nil {
		return err
	}
	ag := agent.New(agent.Options{
		Config: cfg, Store: store, Clock: trusted, Kinds: kinds(cfg), Version: version().Version, Log: log, Progress: r.Step, Events: eventLog,
		Load: again.load, Loaded: again.loaded,
	})
	backend := ag.Backend()
	exporter := metrics.New(backend.Observer, backend.Keys)
	srv := api.NewServer(api.ServerOptions{
		Path: cfg.SocketPath(), Group: readersGroup(), Backend: backend, Log: log, Metrics: exporter.Write,
	})
	stop, err := serveMetrics(ctx, cfg, exporter, log)
	if err != nil {
		return err
	}
	defer stop()
	if err := srv.Listen(); err != nil {
		return err
	}
	return recorded(eventLog, log, func() error {
		watchCtx, end := context.WithCancel(ctx)
		var watching sync.WaitGroup
		watching.Go(func() { again.watch(watchCtx, log, ag.Reload) })
		defer watching.Wait()
		defer end()
		return supervise(ctx, ag, srv, r)
	})
}

// trustedClock is the clock of a member, which goes on from what its store has
// kept.
func trustedClock(cfg config.Config, store *keystore.Store) (*clock.Clock, error) {
	id, err := store.Identity()
	if err != nil {
		return nil, err
	}
	return clock.New(clock.Options{
		Trusted: store.TrustedTime(), Reach: id.Cert.NotAfter, Tolerance: cfg.Crypto.ClockTolerance, Steady: clock.Boottime,
	}), nil
}

// recorded writes start and end of run into the event log, if there is one.
func recorded(eventLog *events.Log, log *slog.Logger, run func() error) error {
	if eventLog == nil {
		return run()
	}
	add := func(kind api.EventKind, text string) {
		if err := eventLog.Add(events.Event{Time: time.Now(), Kind: string(kind), Text: text}); err != nil {
			log.Warn("event not written", logkey.Error, err)
		}
	}
	add(api.EventAgentStarted, "version "+version().Version)
	err := run()
	if err != nil {
		add(api.EventAgentStopped, err.Error())
	} else {
		add(api.EventAgentStopped, "")
	}
	return err
}

// serveMetrics serves metrics over TCP, if the configuration wants that. What
// it returns ends it.
func serveMetrics(ctx context.Context, cfg config.Config, exporter *metrics.Exporter, log *slog.Logger) (func(), error) {
	if !cfg.Metrics.Listen.IsValid() {
		return func() {}, nil
	}
	l := metrics.NewListener(metrics.ListenerOptions{Addr: cfg.Metrics.Listen, Write: exporter.Write, Log: log})
	if err := l.Listen(); err != nil {
		return nil, fail(api.CodeFailed, "choose another port for metrics.listen, or remove it", "%w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The networks do not depend on it: without it the agent goes on.
		if err := l.Run(ctx); err != nil {
			log.Error("metrics listener ended", logkey.Error, err)
		}
	}()
	return func() { cancel(); <-done }, nil
}

// openStore opens the data directory. A lock on it is most often that of a
// running agent, and then the error says so.
func openStore(cfg config.Config) (*keystore.Store, error) {
	store, err := keystore.Open(cfg.DataDir)
	if errors.Is(err, keystore.ErrNotInitialised) {
		return nil, fail(api.CodeFailed, "secure-overlay init to found a cluster, or secure-overlay join TOKEN",
			"this node belongs to no cluster yet: there is no identity in %s", cfg.DataDir)
	}
	if !errors.Is(err, keystore.ErrLocked) {
		return store, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	c := api.NewClient(cfg.SocketPath())
	defer c.Close()
	if _, serr := c.Status(ctx); api.CodeOf(serr) != api.CodeNotRunning {
		return nil, alreadyRunning(cfg)
	}
	return nil, err
}

func alreadyRunning(cfg config.Config) error {
	return fail(api.CodeRefused, "secure-overlay down, or give the second agent its own --runtime-dir and --data-dir",
		"an agent is already running (%s)", cfg.SocketPath())
}

// supervise runs agent and socket. The socket ends last, so that the answer
// of the call that ended the agent is delivered.
func supervise(ctx context.Context, ag *agent.Agent, srv *api.Server, r reporter) error {
	agentCtx, stopAgent := context.WithCancel(ctx)
	defer stopAgent()
	srvCtx, stopServer := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServer()
	agentDone, srvDone := make(chan error, 1), make(chan error, 1)
	go func() { agentDone <- ag.Run(agentCtx) }()
	go func() { srvDone <- srv.Run(srvCtx) }()
	ready := ag.Ready()
	for {
		select {
		case <-ready:
			ready = nil
			r.Ready()
		case err := <-agentDone:
			stopServer()
			return errors.Join(err, <-srvDone)
		case err := <-srvDone:
			// Without its socket nobody can ask or stop the agent.
			stopAgent()
			return errors.Join(err, <-agentDone)
		}
	}
}

// readersGroup is socketGroup if the machine has it.
func readersGroup() string {
	if _, err := user.LookupGroup(socketGroup); err != nil {
		return ""
	}
	return socketGroup
}

// newLogger writes to stderr in the configured form. Its level can be changed.
func newLogger(w *os.File, c config.Log) (slog.Handler, *slog.LevelVar) {
	level := new(slog.LevelVar)
	setLevel(level, c.Level)
	opts := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.NewJSONHandler(w, opts), level
	}
	return slog.NewTextHandler(w, opts), level
}

func setLevel(v *slog.LevelVar, text string) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(text)); err != nil {
		level = slog.LevelInfo
	}
	v.Set(level)
}

// rotateLog makes room for a new log and keeps the previous one.
func rotateLog(path string) (*os.File, error) {
	if err := os.Rename(path, path+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("rotate log: %w", err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND|os.O_EXCL, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return f, nil
}
