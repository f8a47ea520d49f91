package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
)

func (a *app) revokeCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "revoke NODE", Short: "Throw a node out of the cluster, for good", Args: args("NODE"),
		ValidArgsFunction: a.complete(otherMembers),
		Long: `Throw a node out of the cluster, for good, on a node that holds an issuer key.
NODE is its name, its ID, or the beginning of its ID.

Every node takes it out of its tunnels, filters and forwarding the moment it
hears of it, and refuses it from then on; its traffic to the others ends. This
cannot be undone: the machine can only join again as a new node, with an empty
data directory and a new token.

With --wait the command follows the others until every one that can be reached
has applied it.

Exit code 0 if this node has applied it, or with --wait every node; 4 if only
nodes that cannot be reached are missing, 6 if it was refused, 8 if a node that
can be reached has not applied it in time.`,
	}
	format := a.output(cmd)
	var req api.RevokeRequest
	f := cmd.Flags()
	f.StringVar(&req.Reason, "reason", "", "one line for people; every node keeps it")
	wait := f.Bool("wait", false, "wait until every node that can be reached has applied it")
	timeout := f.Duration("timeout", time.Minute, "with --wait: how long")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case f.Changed("timeout") && !*wait:
			return &usageError{msg: "--timeout says how long to --wait", fix: cmd.CommandPath() + " NODE --wait --timeout " + timeout.String()}
		case *timeout <= 0:
			return &usageError{msg: "--timeout must be more than zero", fix: "--timeout 1m"}
		}
		req.Node = args[0]
		rev, err := ask(cmd.Context(), a, func(c *api.Client) (api.RevocationAnswer, error) { return c.Revoke(cmd.Context(), req) })
		if err != nil {
			return err
		}
		if !*wait {
			return a.show(*format, rev, nil, func() error { a.sayRevocation(rev.Revocation); return nil })
		}
		_, err = ask(cmd.Context(), a, func(c *api.Client) (struct{}, error) {
			return struct{}{}, a.waitRevocation(cmd.Context(), c, rev, *format, *timeout)
		})
		return err
	}
	return cmd
}

func (a *app) sayRevocation(r api.Revocation) {
	a.print("%s is revoked here; %d of %s have applied it", cli.Clean(node(r.Node)), r.Applied.OK, cli.Plural(r.Applied.Total, "node"))
}

// waitRevocation follows a revocation until every node that can be reached has
// applied it.
func (a *app) waitRevocation(ctx context.Context, c *api.Client, rev api.RevocationAnswer, format cli.Format, timeout time.Duration) error {
	start := time.Now()
	all, err := a.waitSpread(ctx, timeout, spread{
		what: node(rev.Node) + " is revoked", look: "secure-overlay members --revoked", applied: rev.Applied, waiting: rev.Waiting,
		poll: func(ctx context.Context) (api.Count, []api.RevocationWait, error) {
			list, err := c.Revocations(ctx)
			for _, r := range list.Revocations {
				if r.Node.ID == rev.Node.ID {
					rev.Revocation = r
				}
			}
			return rev.Applied, rev.Waiting, err
		},
	})
	switch {
	case err != nil:
		return err
	case !all:
		return a.partialRevocation(rev, format)
	}
	return a.show(format, rev, nil, func() error {
		a.print("%s is out everywhere   %s", cli.Clean(node(rev.Node)), tookText(time.Since(start).Seconds()))
		return nil
	})
}

func (a *app) partialRevocation(rev api.RevocationAnswer, format cli.Format) error {
	if err := a.show(format, rev, nil, func() error { return nil }); err != nil {
		return err
	}
	return fail(api.CodeDegraded, "nothing: they apply it before anything else when they are back; or revoke them, too, if they are gone for good",
		"%s is out of every node that can be reached; missing: %s", node(rev.Node), waitingNames(rev.Waiting))
}

func waitingNames(list []api.RevocationWait) string {
	var out []string
	for _, w := range list {
		out = append(out, node(w.NodeRef)+" ("+w.State+")")
	}
	return strings.Join(out, ", ")
}

// revokedTable lists who was thrown out.
func (a *app) revokedTable(list []api.Revocation, now time.Time) error {
	t := cli.NewTable("name", "id", "revoked", "applied", "reason")
	for _, r := range list {
		t.Row(node(r.Node), r.Node.ID.Short(), cli.Ago(r.Created, now)+" ago", fmt.Sprintf("%d/%d", r.Applied.OK, r.Applied.Total), r.Reason)
	}
	t.Wrap(80)
	return t.Print(a.out)
}

// otherMembers completes the name of a node that can be revoked.
func otherMembers(ctx context.Context, c *api.Client) []string {
	list, err := c.Members(ctx)
	if err != nil {
		return nil
	}
	var out []string
	for _, m := range list.Members {
		if !m.Self && m.Left.IsZero() {
			out = append(out, m.Name)
		}
	}
	return out
}
