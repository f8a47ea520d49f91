package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
)

// toggle is a change of a network between encrypted and plaintext.
type toggle struct {
	name            string
	driver          string // of --encrypted; empty: not given
	plaintext       bool
	strict, migrate bool
	rootKey, signed string
	steps           map[bool]step // what the root key has signed, by whether both forms are there; nil: an issuer signs
	timeout         time.Duration
	format          cli.Format
}

func (a *app) networkUpdate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "update NETWORK", Short: "Change a network between encrypted and plaintext while it runs", Args: args("NETWORK"),
		ValidArgsFunction: a.complete(clusterNetworks),
		Long: `Change a network of the cluster between encrypted and plaintext while it runs, and wait
until every node that has it has followed.

--strict: every node changes at once. Packets are lost for a moment, between nodes of
which one has followed and the other has not; when the command returns, no node that can
be reached has the network in the former way.
--migrate: every node has the network both ways until each sends to each in the new one.
No packet is lost. Packets are readable until then. Where the MTU has to become smaller,
packets larger than the new one are lost for a moment, unless the network was created
with an --mtu that fits both.

Encrypting takes an issuer key on this node:

  secure-overlay network update blue --encrypted --migrate

Taking encryption away takes the root key, which can stay on a machine of its own: no
node, and no issuer, can do that. UDP 4789 must be open between the nodes then, and
nothing tells whether it is.

  on any node          secure-overlay network update blue --plaintext --migrate
  with the root key    secure-overlay issuer sign --root-key FILE REQUEST
  on any node          secure-overlay network update blue --signed SIGNED

Where the root key is at hand on the node, --plaintext --migrate --root-key FILE does all
three.

Exit code 0 if every node has followed; 4 if only nodes that cannot be reached are
missing, 6 if it was refused, 8 if a node that can be reached has not followed in time.
A migration that was interrupted is gone on with by the same command, and cut short with
--strict.`,
	}
	format := a.output(cmd)
	t := &toggle{}
	f := cmd.Flags()
	f.StringVar(&t.driver, "encrypted", "", "make it encrypted; driver: auto, wireguard, userspace, ipsec or ipsec-userspace (default auto)")
	f.Lookup("encrypted").NoOptDefVal = "auto"
	f.BoolVar(&t.plaintext, "plaintext", false, "make it readable by whoever sees the underlay; takes the root key")
	f.StringVar(&t.rootKey, "root-key", "", "file with the root key that init wrote")
	f.StringVar(&t.signed, "signed", "", "what issuer sign printed; - reads standard input")
	f.BoolVar(&t.strict, "strict", false, "change at once; packets are lost for a moment")
	f.BoolVar(&t.migrate, "migrate", false, "lose no packet; have it both ways meanwhile")
	f.DurationVar(&t.timeout, "timeout", 2*time.Minute, "how long to wait for the nodes")
	_ = cmd.MarkFlagFilename("root-key")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		t.name, t.format = args[0], *format
		if err := t.check(); err != nil {
			return err
		}
		_, err := ask(cmd.Context(), a, func(c *api.Client) (struct{}, error) { return struct{}{}, a.updateNetwork(cmd.Context(), c, t) })
		return err
	}
	return cmd
}

func (t *toggle) check() error {
	switch {
	case t.signed != "" && (t.driver != "" || t.plaintext || t.strict || t.migrate || t.rootKey != ""):
		return &usageError{msg: "--signed takes what was signed as it is", fix: "secure-overlay network update NETWORK --signed SIGNED"}
	case t.timeout <= 0:
		return &usageError{msg: "--timeout must be more than zero", fix: "--timeout 2m"}
	case t.signed != "":
	case t.driver == "" && !t.plaintext:
		return &usageError{msg: "nothing to change", fix: "give --encrypted or --plaintext"}
	case t.driver != "" && t.plaintext:
		return &usageError{msg: "--encrypted and --plaintext contradict each other", fix: "leave out one of the two"}
	case t.strict == t.migrate:
		return &usageError{msg: "say how: at once, or without losing packets", fix: "give one of --strict and --migrate"}
	}
	return nil
}

// toggle changes a network, in one step or in two, and waits after each.
func (a *app) toggle(ctx context.Context, c *api.Client, t *toggle) error {
	start := time.Now()
	n, err := a.setForm(ctx, c, t, t.migrate)
	if err != nil {
		return err
	}
	if n.Change != nil && n.Change.Migrate {
		if err := a.waitForm(ctx, c, t, &n, "sent in the new form", "is both encrypted and plaintext meanwhile"); err != nil {
			return err
		}
		// What was sent in the former way by then is still under way.
		if err := sleep(ctx, drainTime); err != nil {
			return fail(api.CodeFailed, "the same command again", "interrupted; network %s is both encrypted and plaintext", t.name)
		}
		if n, err = a.setForm(ctx, c, t, false); err != nil {
			return err
		}
	}
	if n.Change != nil {
		if err := a.waitForm(ctx, c, t, &n, "followed", "is "+formWord(!t.plaintext)+" in the cluster"); err != nil {
			return err
		}
	}
	return a.show(t.format, api.NetworkAnswer{Schema: api.Schema, Network: n}, nil, func() error {
		a.print("network %s is %s on every node that has it   %s", cli.Clean(t.name), formWord(!t.plaintext), tookText(time.Since(start).Seconds()))
		return nil
	})
}

// drainTime is how long packets may be under way through queues and wires.
const drainTime = time.Second

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func formWord(encrypted bool) string {
	if encrypted {
		return "encrypted"
	}
	return "PLAINTEXT"
}

// setForm says to the cluster what the network is to be, if it is not that.
func (a *app) setForm(ctx context.Context, c *api.Client, t *toggle, migrate bool) (api.Network, error) {
	if t.steps == nil {
		n, err := c.UpdateNetwork(ctx, t.name, api.NetworkUpdate{Encrypted: true, Driver: t.driver, Migrate: migrate})
		return n.Network, err
	}
	n, err := find(ctx, c, t.name)
	if err != nil {
		return n, err
	}
	s, ok := t.steps[migrate]
	if !ok {
		return n, nil // it is that
	}
	if done, err := s.done(n, t); done || err != nil {
		return n, err
	}
	answer, err := c.UpdateNetwork(ctx, t.name, api.NetworkUpdate{Item: s.Raw})
	return answer.Network, err
}

// find returns a network by name.
func find(ctx context.Context, c *api.Client, name string) (api.Network, error) {
	list, err := c.Networks(ctx)
	if err != nil {
		return api.Network{}, err
	}
	i := slices.IndexFunc(list.Networks, func(n api.Network) bool { return n.Name == name })
	if i < 0 {
		return api.Network{}, noNetwork(name, list.Networks)
	}
	return list.Networks[i], nil
}

// waitForm follows a change until every node that can be reached has followed, and
// leaves in n how the network is then.
func (a *app) waitForm(ctx context.Context, c *api.Client, t *toggle, n *api.Network, step, stands string) error {
	look := "secure-overlay network inspect " + t.name
	count := func() (api.Count, []api.RevocationWait) {
		if n.Change == nil {
			return api.Count{}, nil
		}
		var waiting []api.RevocationWait
		for _, w := range n.Change.Waiting {
			waiting = append(waiting, w.RevocationWait)
		}
		return n.Change.Nodes, waiting
	}
	applied, waiting := count()
	s := spread{
		what: fmt.Sprintf("network %s %s", t.name, stands), look: look, step: step, stands: fmt.Sprintf("network %s %s", t.name, stands),
		applied: applied, waiting: waiting,
		poll: func(ctx context.Context) (api.Count, []api.RevocationWait, error) {
			now, err := find(ctx, c, t.name)
			if err != nil {
				return api.Count{}, nil, err
			}
			last := n.Change
			if *n = now; n.Change == nil && last != nil {
				return api.Count{OK: last.Nodes.Total, Total: last.Nodes.Total}, nil, nil
			}
			applied, waiting := count()
			return applied, waiting, nil
		},
	}
	all, err := a.waitSpread(ctx, t.timeout, s)
	switch {
	case err != nil:
		return err
	case !all:
		_, waiting := count()
		fix := "nothing: they follow before anything else when they are back"
		if n.Change.Migrate {
			fix = "the same command when they are back; or --strict, which does not wait for them"
		}
		return fail(api.CodeDegraded, fix, "network %s %s; these nodes cannot be reached and have not followed: %s", t.name, stands, waitingNames(waiting))
	}
	return nil
}
