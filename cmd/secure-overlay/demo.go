package main

import (
	"context"
	"fmt"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/internal/demo"
)

func (a *app) demoCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Show three hosts, an encrypted and a plaintext network, and what a sniffer reads",
		Long: `Build hosts out of network namespaces on this machine, join them to a cluster,
attach a container on each to an encrypted network ("blue") and to a plaintext one
("lab"), send traffic all ways, sniff every wire for the payload, and rotate the keys
while numbered packets are under way.

Needs root and nothing else. Cleans up after itself, also on Ctrl-C and on failure.`,
		Args: args(),
	}
	format := a.output(cmd)
	nodes := cmd.Flags().Int("nodes", demo.DefaultNodes, fmt.Sprintf("number of hosts, %d to %d", demo.MinNodes, demo.MaxNodes))
	keep := cmd.Flags().Bool("keep", false, "leave it up, print commands to try, clean up on Ctrl-C")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *nodes < demo.MinNodes || *nodes > demo.MaxNodes {
			return &usageError{msg: fmt.Sprintf("--nodes %d: want %d to %d", *nodes, demo.MinNodes, demo.MaxNodes), fix: cmd.CommandPath() + " --help"}
		}
		// A terminal that goes away must not leave namespaces behind.
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGHUP)
		defer stop()
		return a.demo(ctx, *nodes, *keep, *format)
	}
	return cmd
}

func (a *app) demo(ctx context.Context, nodes int, keep bool, format cli.Format) error {
	p := newStages(a.err)
	o := demo.Options{Nodes: nodes, Program: selfExe, Stage: p.next, Failed: p.failed}
	if keep {
		o.Hold = func(ctx context.Context, r demo.Result, try []string) error {
			p.pause()
			if err := a.showDemo(format, r); err != nil {
				return err
			}
			a.say("\nIt stays up until Ctrl-C. Try, in another terminal, as root:")
			for _, line := range try {
				a.say("  %s", line)
			}
			<-ctx.Done()
			return nil
		}
	}
	r, err := demo.Run(ctx, o)
	p.end()
	if err != nil {
		if ctx.Err() != nil {
			return fail(api.CodeFailed, "secure-overlay demo", "the demo was interrupted; everything it made is removed")
		}
		return fmt.Errorf("demo: %w", err)
	}
	if keep {
		return nil
	}
	return a.showDemo(format, r)
}

func (a *app) showDemo(format cli.Format, r demo.Result) error {
	return a.show(format, r, anys(r.Networks), func() error {
		t := cli.NewTable("NETWORK", "DRIVER", "MTU", "PINGS", "ON THE WIRE", "READABLE", "MBIT/S")
		for _, n := range r.Networks {
			driver := cli.Cell{Text: n.Driver, Style: cli.Good}
			readable := cli.Cell{Text: fmt.Sprint(n.WireReadable), Style: cli.Good}
			if !n.Encrypted {
				driver.Style, readable.Style = cli.Bad, cli.Bad
			}
			t.Row(n.Name, driver, n.MTU, fmt.Sprintf("%d/%d", n.PingsReceived, n.PingsSent), n.WirePackets, readable, fmt.Sprintf("%.0f", n.MbitPerS))
		}
		if err := t.Print(a.out); err != nil {
			return err
		}
		a.print("\nThe sniffer read every wire between the %d hosts. It could read the plaintext\nnetwork, which proves that it works, and nothing of the encrypted one.", r.Nodes)
		for _, n := range r.Networks {
			if n.WireMissed > 0 {
				a.print("It missed %d packets of network %s: this machine is too busy to show everything.", n.WireMissed, n.Name)
			}
		}
		ro := r.Rotation
		a.print("\nThe keys of the encrypted network were rotated %d times in %.1f s, while %d numbered\npackets were sent both ways between all hosts: %d lost.", ro.Rotations, ro.Seconds, ro.Sent, ro.Lost)
		return nil
	})
}

// stages shows the stages of a demo as a checklist: each ends when the next
// begins. On a terminal the running one moves.
type stages struct {
	list *cli.Checklist
	quit chan struct{}
	done chan struct{}

	mu      sync.Mutex
	current string    // guarded by mu
	since   time.Time // guarded by mu
}

func newStages(s cli.Screen) *stages {
	p := &stages{list: cli.NewChecklist(s), quit: make(chan struct{}), done: make(chan struct{})}
	go p.spin()
	return p
}

func (p *stages) spin() {
	defer close(p.done)
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-p.quit:
			return
		case <-tick.C:
			p.mu.Lock()
			if p.current != "" {
				p.list.Step(cli.Running, p.current, "")
			}
			p.mu.Unlock()
		}
	}
}

// next ends the current stage and begins another.
func (p *stages) next(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish(cli.Done)
	p.current, p.since = what, time.Now()
	p.list.Step(cli.Running, what, "")
}

// finish ends the current stage; p.mu is held.
func (p *stages) finish(m cli.Mark) {
	if p.current != "" {
		p.list.Step(m, p.current, cli.Span(time.Since(p.since)))
	}
	p.current = ""
}

// failed ends the current stage as one that failed, if there is one.
func (p *stages) failed() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish(cli.Failed)
}

// pause ends the current stage, so that other output can follow.
func (p *stages) pause() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish(cli.Done)
}

// end ends the current stage and the movement.
func (p *stages) end() {
	p.pause()
	close(p.quit)
	<-p.done
}
