package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/secure-overlay/secure-overlay/agent"
	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
)

// notice is a line that a detached agent sends to the `up --detach` that
// waits for it.
type notice struct {
	Step     *agent.Step      `json:"step,omitempty"`
	Ready    bool             `json:"ready,omitempty"`
	Error    *api.Error       `json:"error,omitempty"`
	Problems []config.Problem `json:"problems,omitempty"`
}

// logName is the log of a detached agent, in the runtime directory.
const logName = "agent.log"

// background is the detached agent's side: it runs the agent, logs to stderr
// (which is the log file) and reports over the file descriptor.
func (a *app) background(ctx context.Context, cfg config.Config, loadErr error, fd int, load func() (config.Config, error)) error {
	r := &pipeReporter{w: os.NewFile(uintptr(fd), "notify")}
	if r.w == nil {
		return &usageError{msg: fmt.Sprintf("--notify-fd %d is not open", fd)}
	}
	// The workers that the agent starts must not keep the pipe open.
	syscall.CloseOnExec(fd)
	err := loadErr
	if err == nil {
		handler, level := newLogger(os.Stderr, cfg.Log)
		log := slog.New(handler)
		r.log = logReporter{log}
		if err = runAgent(ctx, cfg, newReloading(load, cfg.Path, level), log, r); err != nil {
			log.Error("agent ended", logkey.Error, err)
		}
	}
	r.failed(err)
	return err
}

// pipeReporter sends notices until the agent is ready.
type pipeReporter struct {
	log logReporter

	mu sync.Mutex
	w  *os.File // nil when nobody waits any more
}

// Step sends and logs a stage.
func (r *pipeReporter) Step(s agent.Step) {
	r.send(notice{Step: &s})
	r.log.Step(s)
}

// Ready tells the waiting command that it can go.
func (r *pipeReporter) Ready() {
	r.send(notice{Ready: true})
	r.close()
	r.log.Ready()
}

// failed says why the agent ended before it was ready.
func (r *pipeReporter) failed(err error) {
	if err != nil {
		code, fix := classify(err)
		r.send(notice{Error: &api.Error{Code: code, Message: err.Error(), Fix: fix}, Problems: config.AsProblems(err)})
	}
	r.close()
}

func (r *pipeReporter) send(n notice) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.w == nil {
		return
	}
	// If the waiting command has gone away, the agent carries on without it.
	if json.NewEncoder(r.w).Encode(n) != nil {
		_ = r.w.Close()
		r.w = nil
	}
}

func (r *pipeReporter) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.w != nil {
		_ = r.w.Close()
		r.w = nil
	}
}

// detach starts the agent in a session of its own and waits until it is ready.
func (a *app) detach(ctx context.Context, cfg config.Config, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	c := api.NewClient(cfg.SocketPath())
	defer c.Close()
	if _, err := c.Status(ctx); err == nil {
		return alreadyRunning(cfg)
	}
	child, pipe, err := startChild(cfg)
	if err != nil {
		return err
	}
	defer func() { _ = pipe.Close() }()
	stop := context.AfterFunc(ctx, func() {
		_ = child.Process.Signal(syscall.SIGTERM)
		_ = pipe.SetReadDeadline(time.Now().Add(5 * time.Second))
	})
	defer stop()
	logPath := filepath.Join(cfg.RuntimeDir, logName)
	if err := a.follow(pipe); err != nil {
		_ = child.Process.Signal(syscall.SIGTERM)
		waitErr := child.Wait()
		return notStarted(ctx, err, waitErr, logPath)
	}
	st, err := waitReady(ctx, c)
	if err != nil {
		return err
	}
	a.print("agent running   pid %d   log %s", st.PID, logPath)
	return child.Process.Release()
}

// waitReady asks the socket until it says that the agent is ready.
func waitReady(ctx context.Context, c *api.Client) (api.Status, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		st, err := c.Status(ctx)
		if err == nil && st.Ready {
			return st, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return st, fail(api.CodeTimeout, "secure-overlay status", "the agent runs, but is not ready in time")
		}
	}
}

// startChild runs this program again with the same arguments, detached from
// the terminal, its output in the log.
func startChild(cfg config.Config) (*exec.Cmd, *os.File, error) {
	if err := os.MkdirAll(cfg.RuntimeDir, 0o750); err != nil {
		return nil, nil, fmt.Errorf("make runtime directory: %w", err)
	}
	log, err := rotateLog(filepath.Join(cfg.RuntimeDir, logName))
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = log.Close() }()
	path, err := filepath.Abs(cfg.Path)
	if err != nil {
		return nil, nil, fmt.Errorf("find configuration: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("start agent: %w", err)
	}
	defer func() { _ = w.Close() }()
	child := &exec.Cmd{
		Path: selfExe,
		// Of a flag that stands twice the later one counts.
		Args:        append(append([]string{}, os.Args...), "--notify-fd=3", "--config="+path),
		Dir:         "/",
		Stdout:      log,
		Stderr:      log,
		ExtraFiles:  []*os.File{w},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
	if err := child.Start(); err != nil {
		_ = r.Close()
		return nil, nil, fmt.Errorf("start agent: %w", err)
	}
	return child, r, nil
}

// errEnded says that the agent ended without a word.
var errEnded = errors.New("the agent ended while it started")

// follow prints the notices until the agent is ready.
func (a *app) follow(r io.Reader) error {
	list := cli.NewChecklist(a.err)
	defer list.Break()
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var n notice
		if json.Unmarshal(lines.Bytes(), &n) != nil {
			continue
		}
		switch {
		case n.Step != nil:
			list.Step(mark(n.Step.State), n.Step.Name, n.Step.Detail)
		case n.Ready:
			return nil
		case len(n.Problems) > 0:
			return &config.Problems{List: n.Problems}
		case n.Error != nil:
			return n.Error
		}
	}
	return errEnded
}

// notStarted adds what is known to the reason why the agent is not there.
func notStarted(ctx context.Context, err, waitErr error, logPath string) error {
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fail(api.CodeTimeout, "look into "+logPath, "the agent was not ready in time and was stopped")
	case ctx.Err() != nil:
		return fail(api.CodeFailed, "", "interrupted; the agent was stopped")
	case !errors.Is(err, errEnded):
		return err
	}
	msg := errEnded.Error()
	if waitErr != nil {
		msg += " (" + waitErr.Error() + ")"
	}
	if raw, rerr := os.ReadFile(logPath); rerr == nil {
		lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
		msg += "; its log ends with:\n" + strings.Join(lines[max(0, len(lines)-5):], "\n")
	}
	return fail(api.CodeFailed, "look into "+logPath, "%s", msg)
}
