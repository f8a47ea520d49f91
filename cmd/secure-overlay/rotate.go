package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
)

func (a *app) keysRotate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rotate", Short: "Start a new key epoch in the whole cluster", Args: args(),
		Long: `Start a new key epoch in the whole cluster. Any node may ask; a node with an
issuer key must be reachable to sign it.
Packets keep flowing: a pair of nodes moves when both receive under the new keys.
Two rotations asked for at the same time are one.

With --driver the new epoch uses another tunnel driver. With --wait the command
follows the rotation and names whoever holds it up; stopping it stops nothing.

Exit code 0 if the rotation was asked for, or with --wait is finished everywhere,
4 if nodes that cannot be reached or cannot follow keep the old keys alive, 6 if it
was refused, 8 if it is not finished in time.`,
	}
	format := a.output(cmd)
	var req api.RotateRequest
	f := cmd.Flags()
	f.StringVar(&req.Driver, "driver", "", "tunnel driver of the new epoch: auto, wireguard, userspace, ipsec, ipsec-userspace (default: as it is)")
	f.BoolVar(&req.DryRun, "dry-run", false, "say what would happen, and change nothing")
	wait := f.Bool("wait", false, "wait until every node has left the old keys")
	timeout := f.Duration("timeout", 5*time.Minute, "with --wait: how long")
	_ = cmd.RegisterFlagCompletionFunc("driver", cobra.FixedCompletions(api.RotateDrivers(), cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case *wait && req.DryRun:
			return &usageError{msg: "--dry-run changes nothing, so there is nothing to --wait for", fix: "leave out one of the two"}
		case f.Changed("timeout") && !*wait:
			return &usageError{msg: "--timeout says how long to --wait", fix: cmd.CommandPath() + " --wait --timeout " + timeout.String()}
		case *timeout <= 0:
			return &usageError{msg: "--timeout must be more than zero", fix: "--timeout 5m"}
		}
		rot, err := ask(cmd.Context(), a, func(c *api.Client) (api.Rotation, error) { return c.Rotate(cmd.Context(), req) })
		if err != nil {
			return err
		}
		if !*wait {
			return a.show(*format, rot, nil, func() error { a.sayRotation(rot); return nil })
		}
		if *format == cli.FormatTable {
			a.sayRotation(rot)
		}
		_, err = ask(cmd.Context(), a, func(c *api.Client) (struct{}, error) {
			return struct{}{}, a.waitRotation(cmd.Context(), c, rot, *format, usualWait(*timeout))
		})
		return err
	}
	return cmd
}

// sayRotation prints what was asked for, or what would be.
func (a *app) sayRotation(r api.Rotation) {
	verb := "epoch"
	if r.DryRun {
		verb = "would start: epoch"
	}
	line := fmt.Sprintf("%s %d -> %d   driver %s", verb, r.From, r.To, r.Driver)
	a.print("%s", cli.Clean(line))
	for _, e := range r.Effects {
		a.wrap("       - ", e)
	}
}

// waitOptions are the pauses of waiting for a rotation.
type waitOptions struct {
	timeout  time.Duration // until it has to be finished
	poll     time.Duration // between two questions to the agent
	patience time.Duration // until whoever holds it up is named
	settle   time.Duration // for which nothing moves until only lost nodes count as missing
}

func usualWait(timeout time.Duration) waitOptions {
	return waitOptions{timeout: timeout, poll: 200 * time.Millisecond, patience: 3 * time.Second, settle: 5 * time.Second}
}

// Outcomes of waiting for a rotation.
const (
	waitDone    = "done"
	waitPartial = "partial" // only nodes that cannot be reached or cannot follow are missing
	waitTimeout = "timeout"
)

// rotated is what `keys rotate --wait` prints for programs.
type rotated struct {
	api.Rotation
	Outcome  string       `json:"outcome"`
	Seconds  float64      `json:"seconds"` // that it was waited for
	Progress api.Progress `json:"progress"`
}

// waitRotation follows a rotation until it is finished, until nobody is left
// for whom waiting helps, or until the time is over.
func (a *app) waitRotation(ctx context.Context, c *api.Client, rot api.Rotation, format cli.Format, o waitOptions) error {
	start := time.Now()
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	w := newRotationWatch(a, o, start)
	defer w.list.Break()
	tick := time.NewTicker(o.poll)
	defer tick.Stop()
	end := func(outcome string) error {
		w.list.Break()
		return a.endRotation(rotated{rot, outcome, time.Since(start).Seconds(), w.last}, format, o.timeout)
	}
	for {
		k, err := c.Keys(ctx)
		switch {
		case err == nil:
			if outcome := w.see(k.Progress(rot.To), time.Now()); outcome != "" {
				return end(outcome)
			}
		case ctx.Err() == nil && api.CodeOf(err) != api.CodeTimeout:
			return err // the agent ended, or cannot be asked
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return fail(api.CodeFailed, "secure-overlay keys status", "interrupted; the rotation goes on")
			}
			w.end(cli.Failed)
			return end(waitTimeout)
		}
	}
}

// endRotation prints the result and turns what is missing into an error.
func (a *app) endRotation(r rotated, format cli.Format, timeout time.Duration) error {
	err := a.show(format, r, nil, func() error {
		if r.Outcome == waitDone {
			a.print("epoch %d is in use everywhere, the old keys are gone   %s", r.To, tookText(r.Seconds))
		}
		return nil
	})
	if err != nil {
		return err
	}
	missing := ""
	for _, w := range r.Progress.Waiting {
		missing += fmt.Sprintf("\n%s: %s", node(w.NodeRef), w.Reason)
	}
	switch r.Outcome {
	case waitPartial:
		return fail(api.CodeDegraded, "repair or remove those nodes; meanwhile: secure-overlay keys status",
			"epoch %d is in use, but the old keys stay until these nodes follow:%s", r.To, missing)
	case waitTimeout:
		if missing == "" {
			missing = "\nthe agent did not say how far it is"
		}
		return fail(api.CodeTimeout, "secure-overlay keys status", "epoch %d is not finished after %s; it goes on without this command:%s", r.To, cli.Span(timeout), missing)
	}
	return nil
}
