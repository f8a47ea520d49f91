package netlab

import (
	"bytes"
	"context"
	"os/exec"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// Cmd is an exec.Cmd that starts inside a network namespace. Only its own
// Start, Run, Output and CombinedOutput do that; every other method and field
// is exec.Cmd's. SysProcAttr.Pdeathsig must stay unset: the thread that starts
// the process ends at once, and the kernel would send the signal then.
type Cmd struct {
	*exec.Cmd
	ns *nl.Namespace
}

// Command prepares a process that will run inside the namespace; it is killed
// when ctx ends, and at the latest by Lab.Close.
func (b *Box) Command(ctx context.Context, name string, args ...string) *Cmd {
	return &Cmd{Cmd: exec.CommandContext(ctx, name, args...), ns: b.ns}
}

// Start starts the process inside the namespace: a child inherits the
// namespace of the thread that forks it.
func (c *Cmd) Start() error { return c.ns.Do(c.Cmd.Start) }

// Run starts the process and waits for it.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the process and returns its standard output.
func (c *Cmd) Output() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout = &out
	err := c.Run()
	return out.Bytes(), err
}

// CombinedOutput runs the process and returns its standard output and error.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}
