package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// Node is one host with its agent.
type Node struct {
	Host *netlab.Host
	Name string

	dir     string
	binary  string
	config  string
	profile string
	derive  bool
	log     io.Writer
	client  *api.Client
	proc    *process
}

// process is a running agent.
type process struct {
	cmd  *netlab.Cmd
	done chan struct{} // closed when the process has ended
	err  error         // set before done closes
	out  *os.File
}

// DataDir is the node's data folder.
func (n *Node) DataDir() string { return filepath.Join(n.dir, "data") }

// RuntimeDir is the node's runtime folder.
func (n *Node) RuntimeDir() string { return filepath.Join(n.dir, "run") }

// ConfigPath is the node's config file.
func (n *Node) ConfigPath() string { return filepath.Join(n.dir, "config.yaml") }

// LogPath is the file that holds the agent's log.
func (n *Node) LogPath() string { return filepath.Join(n.dir, "agent.log") }

// WriteConfig replaces the node's config file; a running agent does not see it.
func (n *Node) WriteConfig(networks []Network) error {
	if err := os.WriteFile(n.ConfigPath(), []byte(configText(n, networks)), 0o600); err != nil {
		return fmt.Errorf("write config of %s: %w", n.Name, err)
	}
	return nil
}

// CommandError is a command of the program that ended with an error.
type CommandError struct {
	Node   string
	Args   []string
	Code   int // exit status, -1 if it did not exit by itself
	Stdout string
	Stderr string
}

// Error implements error. Arguments that look like join tokens are left out.
func (e *CommandError) Error() string {
	args := make([]string, len(e.Args))
	for i, a := range e.Args {
		if strings.HasPrefix(a, "SO1") {
			a = "TOKEN"
		}
		args[i] = a
	}
	return fmt.Sprintf("secure-overlay %s on %s: exit %d: %s",
		strings.Join(args, " "), e.Node, e.Code, strings.TrimSpace(e.Stderr))
}

// CLI runs a command of the program on the node's host and returns its
// standard output. A failure is a *CommandError.
func (n *Node) CLI(ctx context.Context, args ...string) ([]byte, error) {
	return n.CLIWithEnv(ctx, nil, args...)
}

// CLIWithEnv is CLI with more environment variables.
func (n *Node) CLIWithEnv(ctx context.Context, env []string, args ...string) ([]byte, error) {
	cmd := n.command(ctx, args...)
	cmd.Env = append(cmd.Env, env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		code := -1
		if cmd.ProcessState != nil {
			code = cmd.ProcessState.ExitCode()
		} else {
			stderr.WriteString(err.Error())
		}
		return stdout.Bytes(), &CommandError{Node: n.Name, Args: args, Code: code,
			Stdout: stdout.String(), Stderr: stderr.String()}
	}
	return stdout.Bytes(), nil
}

func (n *Node) command(ctx context.Context, args ...string) *netlab.Cmd {
	cmd := n.Host.Command(ctx, n.binary, args...)
	cmd.Env = append(os.Environ(), "SECURE_OVERLAY_CONFIG="+n.ConfigPath())
	return cmd
}

// JSON runs a command with -o json and decodes its answer.
func (n *Node) JSON(ctx context.Context, into any, args ...string) error {
	out, err := n.CLI(ctx, append(args, "-o", "json")...)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(out, into); err != nil {
		return fmt.Errorf("decode the answer of %s on %s: %w", args[0], n.Name, err)
	}
	return nil
}

// Launch starts the agent in the foreground of a process of its own and
// returns at once.
func (n *Node) Launch(ctx context.Context) error {
	if n.Running() {
		return fmt.Errorf("start agent on %s: it runs already", n.Name)
	}
	// The agent outlives the call: it ends by Stop, Kill or Close.
	cmd := n.command(context.WithoutCancel(ctx), "up", "-c", n.ConfigPath())
	p := &process{cmd: cmd, done: make(chan struct{})}
	if n.log == nil {
		f, err := os.OpenFile(n.LogPath(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("start agent on %s: %w", n.Name, err)
		}
		p.out = f
		cmd.Stdout, cmd.Stderr = f, f
	} else {
		cmd.Stdout, cmd.Stderr = n.log, n.log
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start agent on %s: %w", n.Name, err)
	}
	go func() {
		p.err = cmd.Wait()
		if p.out != nil {
			_ = p.out.Close()
		}
		close(p.done)
	}()
	n.proc = p
	return nil
}

// Up starts the agent and waits until it reports that it is ready.
func (n *Node) Up(ctx context.Context) error {
	if err := n.Launch(ctx); err != nil {
		return err
	}
	return n.WaitStatus(ctx, "a ready agent", func(s api.Status) bool { return s.Ready })
}

// Running reports whether the agent's process runs.
func (n *Node) Running() bool {
	if n.proc == nil {
		return false
	}
	select {
	case <-n.proc.done:
		return false
	default:
		return true
	}
}

// PID returns the agent's process ID.
func (n *Node) PID() int { return n.proc.cmd.Process.Pid }

// Kill ends the agent with SIGKILL and waits for its end. Its data plane stays.
func (n *Node) Kill() error { return n.end(os.Kill) }

// Stop ends the agent with SIGINT and waits for its end. Its data plane stays.
func (n *Node) Stop() error { return n.end(os.Interrupt) }

func (n *Node) end(sig os.Signal) error {
	if !n.Running() {
		return nil
	}
	if err := n.proc.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("end agent on %s: %w", n.Name, err)
	}
	select {
	case <-n.proc.done:
		return nil
	case <-time.After(20 * time.Second):
		_ = n.proc.cmd.Process.Kill()
		<-n.proc.done
		return fmt.Errorf("end agent on %s: it ignored %v for 20 s and was killed", n.Name, sig)
	}
}

// Status asks the agent through its socket.
func (n *Node) Status(ctx context.Context) (api.Status, error) {
	return n.client.Status(ctx)
}

// Client talks to the agent's socket without the program in between. It may be
// used by several goroutines and ends with the fleet.
func (n *Node) Client() *api.Client { return n.client }

// WaitStatus asks until cond holds. When ctx ends first, or the agent's
// process does, the error shows the last answer and the end of the log.
func (n *Node) WaitStatus(ctx context.Context, what string, cond func(api.Status) bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var last api.Status
	var lastErr error
	for {
		var now api.Status
		if now, lastErr = n.Status(ctx); lastErr == nil {
			if last = now; cond(now) {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return n.waitError(what, last, lastErr, ctx.Err())
		case <-n.proc.done:
			return n.waitError(what, last, lastErr, fmt.Errorf("the agent ended: %w", n.proc.err))
		case <-tick.C:
		}
	}
}

func (n *Node) waitError(what string, last any, lastErr, cause error) error {
	text, _ := json.Marshal(last)
	return fmt.Errorf("wait for %s on %s: %w; last status %s (%v); log ends:\n%s",
		what, n.Name, cause, text, lastErr, n.LogTail(30))
}

// LogTail returns the last lines of the agent's log, without memberlist's.
func (n *Node) LogTail(lines int) string {
	raw, err := os.ReadFile(n.LogPath())
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimRight(string(raw), "\n"), "\n")
	all = slices.DeleteFunc(all, func(line string) bool { return strings.Contains(line, "memberlist: ") })
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Down runs the down command: through the agent if one runs, else by itself.
func (n *Node) Down(ctx context.Context) error {
	if _, err := n.CLI(ctx, "down"); err != nil {
		return err
	}
	if n.proc != nil {
		select {
		case <-n.proc.done:
		case <-ctx.Done():
			return fmt.Errorf("wait for the agent on %s to end after down: %w", n.Name, ctx.Err())
		}
	}
	return nil
}

// cleanUp takes the node down if it ever came up.
func (n *Node) cleanUp(ctx context.Context) error {
	defer n.client.Close()
	if n.proc == nil {
		return nil
	}
	err := n.Down(ctx)
	if n.Running() {
		err = errors.Join(err, n.Kill())
	}
	// If down failed the lab must still be able to remove its folder.
	left, lerr := netlab.NamespaceMounts(n.dir)
	err = errors.Join(err, lerr)
	for _, path := range left {
		err = errors.Join(err, fmt.Errorf("down on %s left %s", n.Name, path), nl.RemoveNamespace(path))
	}
	return err
}
