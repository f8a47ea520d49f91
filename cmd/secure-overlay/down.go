package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/agent"
	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
)

func (a *app) downCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "down",
		Short: "Stop the agent and remove everything it made",
		Long: `Stop the agent and remove everything it made in the kernel, and nothing else.
Works without a running agent, too. Keys and configuration stay.`,
		Args: args(),
	}
	format := a.output(cmd)
	flags := settingFlags(cmd)
	yes := cmd.Flags().BoolP("yes", "y", false, "do not ask, even if endpoints are attached")
	timeout := cmd.Flags().Duration("timeout", 30*time.Second, "how long to wait for the agent to end")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(cmd.Context(), *timeout)
		defer cancel()
		res, err := ask(ctx, a, func(c *api.Client) (api.DownResult, error) { return a.downRunning(ctx, c, *yes) })
		if api.CodeOf(err) == api.CodeNotRunning {
			res, err = a.teardown(ctx, flags())
		}
		if err != nil {
			return err
		}
		return a.show(*format, res, nil, func() error {
			for _, line := range res.Removed {
				a.print("removed  %s", cli.Clean(line))
			}
			if len(res.Removed) == 0 {
				a.say("nothing to remove")
			}
			return nil
		})
	}
	return cmd
}

// downRunning asks the agent to clean up and waits until its process is gone,
// so that whatever follows finds no trace of it.
func (a *app) downRunning(ctx context.Context, c *api.Client, yes bool) (api.DownResult, error) {
	st, err := c.Status(ctx)
	if err != nil {
		return api.DownResult{}, err
	}
	// Endpoints lose their networks.
	if here := endpointsHere(st); here > 0 {
		if err := a.confirm(cli.Plural(here, "attached endpoint")+" will lose their networks.", "secure-overlay down --yes", yes); err != nil {
			return api.DownResult{}, err
		}
	}
	end := agentEnd(c, st.PID)
	defer end.forget()
	res, err := c.Down(ctx, api.DownRequest{})
	if err != nil {
		return res, err
	}
	return res, end.wait(ctx)
}

func endpointsHere(st api.Status) (n int) {
	for _, nw := range st.Networks {
		n += nw.EndpointsHere
	}
	return n
}

// ending is an agent that is about to end.
type ending struct {
	c     *api.Client
	pid   int
	pidfd int // -1: not open
}

// agentEnd is called before the agent is asked to end: afterwards the number
// could be another process.
func agentEnd(c *api.Client, pid int) ending {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		fd = -1
	}
	return ending{c, pid, fd}
}

// wait returns when the agent is gone.
func (e ending) wait(ctx context.Context) error {
	if e.pidfd < 0 {
		return waitGone(ctx, e.c)
	}
	return waitPidfd(ctx, e.pidfd, e.pid)
}

func (e ending) forget() {
	if e.pidfd >= 0 {
		_ = unix.Close(e.pidfd)
	}
}

// waitPidfd waits until the process ends.
func waitPidfd(ctx context.Context, pidfd, pid int) error {
	for ctx.Err() == nil {
		fds := []unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(fds, 100)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for the agent's process %d: %w", pid, err)
		}
	}
	return fail(api.CodeTimeout, "secure-overlay status", "everything was removed, but the agent (pid %d) has not ended yet", pid)
}

// waitGone waits until nobody answers on the socket.
func waitGone(ctx context.Context, c *api.Client) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := c.Status(ctx); api.CodeOf(err) == api.CodeNotRunning {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fail(api.CodeTimeout, "secure-overlay status", "everything was removed, but the agent has not ended yet")
		}
	}
}

// teardown cleans up after an agent that no longer runs.
func (a *app) teardown(ctx context.Context, flags map[string]string) (api.DownResult, error) {
	cfg, err := a.load(flags)
	if err != nil {
		return api.DownResult{}, err
	}
	if err := preflight(cfg); err != nil {
		return api.DownResult{}, err
	}
	handler, _ := newLogger(os.Stderr, cfg.Log)
	log := slog.New(handler)
	res, err := agent.Teardown(ctx, cfg, kinds(cfg), log)
	res.Schema = api.Schema
	if res.Removed == nil {
		res.Removed = []string{}
	}
	return res, err
}
