package main

import (
	"context"
	"log/slog"
	"os"
	"sync"

	"github.com/secure-overlay/secure-overlay/agent"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
)

// foreground runs the agent in this process: a checklist while it starts,
// then its log. With JSON logs there is no checklist: stderr is for a program.
func (a *app) foreground(ctx context.Context, cfg config.Config, load func() (config.Config, error)) error {
	handler, level := newLogger(os.Stderr, cfg.Log)
	again := newReloading(load, cfg.Path, level)
	if cfg.Log.Format == "json" {
		log := slog.New(handler)
		return runAgent(ctx, cfg, again, log, logReporter{log})
	}
	g := &gate{}
	list := cli.NewChecklist(a.err)
	err := runAgent(ctx, cfg, again, slog.New(gatedHandler{handler, g}), &checkReporter{app: a, list: list, gate: g})
	list.Break()
	g.open()
	if err == nil && ctx.Err() != nil {
		a.say("agent stopped; the networks stay up. Remove them with:\n  sudo secure-overlay down%s", a.sameAgent(cfg.Path))
	}
	return err
}

// checkReporter prints the checklist and lets the log through when the agent
// is ready.
type checkReporter struct {
	app  *app
	list *cli.Checklist
	gate *gate

	mu    sync.Mutex
	ready bool // guarded by mu
}

// Step prints a stage. After the start the log tells about changes.
func (r *checkReporter) Step(s agent.Step) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.ready {
		r.list.Step(mark(s.State), s.Name, s.Detail)
	}
}

// Ready ends the checklist.
func (r *checkReporter) Ready() {
	r.mu.Lock()
	r.ready = true
	r.mu.Unlock()
	r.list.Break()
	r.list.Step(cli.Done, "ready", "ask it with: secure-overlay status"+r.app.sameAgent(r.app.source(nil).Path))
	r.gate.open()
}

func mark(s agent.StepState) cli.Mark {
	switch s {
	case agent.StepDone:
		return cli.Done
	case agent.StepWarning:
		return cli.Warning
	case agent.StepFailed:
		return cli.Failed
	default:
		return cli.Running
	}
}

// logReporter writes stages as log lines.
type logReporter struct{ log *slog.Logger }

// Step logs a stage that ended.
func (r logReporter) Step(s agent.Step) {
	switch s.State {
	case agent.StepRunning:
	case agent.StepDone:
		r.log.Info("start: stage done", logkey.Name, s.Name, logkey.Reason, s.Detail)
	default:
		r.log.Warn("start: stage has a problem", logkey.Name, s.Name, logkey.Reason, s.Detail)
	}
}

// Ready logs that the agent works.
func (r logReporter) Ready() { r.log.Info("agent ready") }

// maxHeld bounds the log lines that a gate holds back.
const maxHeld = 1000

// gate holds log lines back until it is opened, so that they do not tear the
// checklist apart.
type gate struct {
	mu     sync.Mutex
	opened bool
	held   []func()
}

// pass runs write now, or when the gate opens.
func (g *gate) pass(write func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.opened || len(g.held) >= maxHeld {
		write()
		return
	}
	g.held = append(g.held, write)
}

// open lets everything through, from now on and what was held back.
func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, write := range g.held {
		write()
	}
	g.held, g.opened = nil, true
}

// gatedHandler is a slog.Handler behind a gate.
type gatedHandler struct {
	slog.Handler
	gate *gate
}

// Handle implements slog.Handler.
func (h gatedHandler) Handle(_ context.Context, r slog.Record) error {
	r = r.Clone()
	h.gate.pass(func() { _ = h.Handler.Handle(context.Background(), r) })
	return nil
}

// WithAttrs implements slog.Handler.
func (h gatedHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return gatedHandler{h.Handler.WithAttrs(attrs), h.gate}
}

// WithGroup implements slog.Handler.
func (h gatedHandler) WithGroup(name string) slog.Handler {
	return gatedHandler{h.Handler.WithGroup(name), h.gate}
}
