package worker

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// startTime is how long a worker may take to become ready.
const startTime = 30 * time.Second

// readyWord is what a worker writes when it is ready.
const readyWord = "ready"

// Flags returns the empty set of a worker's parameters. A wrong one is an error
// of its Parse, and nothing is printed.
func Flags() *flag.FlagSet {
	f := flag.NewFlagSet("worker", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	return f
}

// Command starts a worker.
type Command struct {
	Argv []string      // program and arguments
	Host *nl.Namespace // the worker's threads start in it
	Log  string        // file that takes its standard error
	// Files are open in the worker from descriptor 3 on, and after them the
	// pipe that it gives to Report.
	Files []*os.File
}

// Start runs the command, waits until the worker says that it is ready, and
// returns its process ID, which belongs among the caller's Children. A worker that does not
// become ready is ended; what it leaves is the caller's to remove. The error
// says what the worker said, and wraps EADDRINUSE if that was it.
func (c Command) Start(ctx context.Context) (int, error) {
	ready, theirs, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("start worker: %w", err)
	}
	defer func() { _ = ready.Close() }()
	pid, err := c.run(theirs)
	_ = theirs.Close()
	if err != nil {
		return 0, fmt.Errorf("start worker: %w", err)
	}
	if err := awaitReady(ctx, ready); err != nil {
		return 0, errors.Join(err, kill(pid))
	}
	return pid, nil
}

// kill ends a worker that did not become ready.
func kill(pid int) error {
	p, err := Open(pid)
	if err != nil { // it was reaped by somebody else: gone
		return nil
	}
	defer p.Close()
	p.Signal(unix.SIGKILL)
	return p.End(context.Background())
}

// run starts the process. It inherits the namespace of the thread that starts
// it, so it starts inside the host's: its sockets will be there.
func (c Command) run(ready *os.File) (int, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = null.Close() }()
	// Appended to: what a predecessor had to say before it broke is in there.
	log, err := os.OpenFile(c.Log, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return 0, err
	}
	defer func() { _ = log.Close() }()
	attr := &os.ProcAttr{
		Dir:   "/",
		Env:   environment(),
		Files: append(append([]*os.File{null, null, log}, c.Files...), ready),
		// A session of its own: what stops the agent's terminal or group does
		// not reach the worker.
		Sys: &syscall.SysProcAttr{Setsid: true},
	}
	var p *os.Process
	err = c.Host.Do(func() (err error) {
		p, err = os.StartProcess(c.Argv[0], c.Argv, attr)
		return err
	})
	if err != nil {
		return 0, err
	}
	pid := p.Pid
	// It is waited for by number and only while it is known to be a child.
	return pid, p.Release()
}

// environment is a worker's. The agent's is not its business, but for how a program that looks for
// races ends: others wait for that. A traceback prints arguments, and a key is passed as one.
func environment() []string {
	env := []string{"GOTRACEBACK=none"}
	if race, ok := os.LookupEnv("GORACE"); ok {
		env = append(env, "GORACE="+race)
	}
	return env
}

// awaitReady reads what the worker says until it closes the pipe.
func awaitReady(ctx context.Context, ready *os.File) error {
	end := time.Now().Add(startTime)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	if err := ready.SetReadDeadline(end); err != nil {
		return fmt.Errorf("wait for worker: %w", err)
	}
	defer context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })()
	said, err := io.ReadAll(io.LimitReader(ready, 4096))
	switch {
	case err != nil:
		return fmt.Errorf("wait for worker: %w", errors.Join(err, ctx.Err()))
	case string(said) == readyWord:
		return nil
	case len(said) == 0:
		return errors.New("worker ended before it was ready")
	case strings.Contains(string(said), unix.EADDRINUSE.Error()):
		return fmt.Errorf("worker: %s: %w", said, unix.EADDRINUSE)
	}
	return fmt.Errorf("worker: %s", said)
}

// Report is the worker's side of Start: it says that the worker is ready,
// or what went wrong. An agent that died since the start reads no more; that is
// no reason to end, the next one will adopt this worker. Go turns a broken pipe
// on this descriptor into an error, not into a signal.
func Report(ready *os.File, err error) {
	if err != nil {
		_, _ = fmt.Fprintf(ready, "%v", err)
	} else {
		_, _ = fmt.Fprint(ready, readyWord)
	}
	_ = ready.Close()
}
