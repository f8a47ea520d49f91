package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/internal/ids"
)

func (a *app) keysCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "keys", Aliases: []string{"key"}, Short: "Show and rotate the tunnel keys", Args: cobra.ArbitraryArgs, RunE: a.group,
		Long: `Show and rotate the tunnel keys. Keys come in epochs: a new epoch is a new tunnel
device on every node, and each pair of nodes moves to it when both have shown
that they receive on it, so that no packet is lost.`,
	}
	cmd.AddCommand(a.keysStatus(), a.keysRotate(), a.keysHistory())
	return cmd
}

func (a *app) keysStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show key epochs: age, next rotation, where each pair of nodes is", Args: args(),
		Long: `Show key epochs: their age, the next rotation, and where each pair of nodes is.

Exit code 0 if every pair can follow (a rotation may be under way), 3 if no
agent is running, 4 if this node or a pair cannot follow.`,
	}
	format := a.output(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		k, err := ask(cmd.Context(), a, func(c *api.Client) (api.KeyStatus, error) { return c.Keys(cmd.Context()) })
		if err != nil {
			return err
		}
		if err := a.show(*format, k, nil, func() error { return a.keysTables(k, time.Now()) }); err != nil {
			return err
		}
		if k.Blocked != "" {
			return &exitError{api.CodeDegraded.ExitCode()}
		}
		for _, p := range k.Peers {
			if p.Step == api.KeyStepRefused {
				return &exitError{api.CodeDegraded.ExitCode()}
			}
		}
		return nil
	}
	return cmd
}

func (a *app) keysTables(k api.KeyStatus, now time.Time) error {
	line := fmt.Sprintf("epoch %d   driver %s   ", k.Target.Epoch, k.Target.Driver)
	if k.Started.IsZero() {
		line += "not started here"
	} else {
		line += "started " + cli.Ago(k.Started, now) + " ago"
	}
	a.print("%s", cli.Clean(line+"   "+nextRotation(k.NextRotation, now)))
	if k.Target.Reason != "" {
		a.wrap("reason   ", k.Target.Reason)
	}
	if len(k.Devices) > 0 {
		a.print("")
		if err := a.deviceTable(k.Devices, now); err != nil {
			return err
		}
	}
	if len(k.Peers) > 0 {
		a.print("")
		if err := a.pairTable(k.Peers, now); err != nil {
			return err
		}
	}
	if err := a.keyNodes(k); err != nil {
		return err
	}
	a.keyTroubles(k)
	return nil
}

// nextRotation says when keys change by themselves.
func nextRotation(at, now time.Time) string {
	switch {
	case at.IsZero():
		return "rotates only on command"
	case !at.After(now):
		return "next rotation now"
	}
	return "next rotation in " + cli.Span(at.Sub(now))
}

func (a *app) deviceTable(list []api.KeyDevice, now time.Time) error {
	t := cli.NewTable("epoch", "driver", "age", "peers")
	for _, d := range list {
		epoch, age := fmt.Sprint(d.Epoch), "-"
		if d.Current {
			epoch += " *"
		}
		if !d.Created.IsZero() {
			age = cli.Ago(d.Created, now)
		}
		t.Row(epoch, d.Label, age, d.Peers)
	}
	return t.Print(a.out)
}

func (a *app) pairTable(list []api.KeyPeer, now time.Time) error {
	t := cli.NewTable("peer", "epoch", "step", "since", "driver", "handshake", "pq")
	for _, p := range list {
		step := cli.Cell{Text: string(p.Step), Style: cli.Warn}
		switch p.Step {
		case api.KeyStepDone:
			step.Style = cli.Good
		case api.KeyStepRefused:
			step.Style = cli.Bad
		}
		epoch := fmt.Sprint(p.Epoch)
		if p.Goal != p.Epoch && p.Goal != 0 {
			epoch += fmt.Sprintf(" -> %d", p.Goal)
		}
		handshake, since := "-", "-"
		if !p.LastHandshake.IsZero() {
			handshake = cli.Ago(p.LastHandshake, now)
		}
		if !p.Since.IsZero() {
			since = cli.Ago(p.Since, now)
		}
		t.Row(node(p.NodeRef), epoch, step, since, p.Driver, handshake, pqCell(p.PQ, p.Epoch))
	}
	return t.Print(a.out)
}

// pqCell says whether the keys of a pair hold against a quantum computer.
func pqCell(pq bool, epoch ids.Epoch) cli.Cell {
	switch {
	case epoch == 0:
		return cli.Cell{Text: "-", Style: cli.Dim}
	case pq:
		return cli.Cell{Text: "yes", Style: cli.Good}
	}
	return cli.Cell{Text: "no", Style: cli.Warn}
}

// keyNodes lists the nodes that have other epochs than the target alone.
func (a *app) keyNodes(k api.KeyStatus) error {
	t := cli.NewTable("node", "epochs", "state")
	others := 0
	for _, n := range k.Nodes {
		if len(n.Epochs) == 1 && n.Epochs[0] == k.Target.Epoch {
			continue
		}
		others++
		list := make([]string, len(n.Epochs))
		for i, e := range n.Epochs {
			list[i] = fmt.Sprint(e)
		}
		name := node(n.NodeRef)
		if n.Self {
			name += " *"
		}
		t.Row(name, strings.Join(list, ", "), n.State)
	}
	if len(k.Nodes) == 0 {
		return nil
	}
	a.print("\n%d of %s on epoch %d alone", len(k.Nodes)-others, cli.Plural(len(k.Nodes), "node"), k.Target.Epoch)
	if others == 0 {
		return nil
	}
	return t.Print(a.out)
}

// keyTroubles says what holds things up, below the tables.
func (a *app) keyTroubles(k api.KeyStatus) {
	first := true
	tell := func(style cli.Style, label, text string) {
		if first {
			a.print("")
			first = false
		}
		a.wrap(a.out.Paint(style, label)+strings.Repeat(" ", labelWidth-len(label)), text)
	}
	if k.Blocked != "" {
		tell(cli.Bad, "blocked", k.Blocked)
	}
	for _, p := range k.Peers {
		switch {
		case p.Step == api.KeyStepRefused:
			tell(cli.Bad, "refused", node(p.NodeRef)+": "+p.Reason)
		case p.Reason != "":
			tell(cli.Warn, "waiting", node(p.NodeRef)+": "+p.Reason)
		}
		if !p.FullMTU && p.Epoch != 0 {
			tell(cli.Warn, "mtu", node(p.NodeRef)+": packets of the tunnel's whole MTU are lost on the way; see: secure-overlay doctor")
		}
	}
}

func (a *app) keysHistory() *cobra.Command {
	cmd := &cobra.Command{
		Use: "history", Short: "List what happened to keys on this node", Args: args(),
		Long: "List what happened to keys on this node, oldest first. \"events\" lists the rest, too.",
	}
	format := a.output(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		list, err := ask(cmd.Context(), a, func(c *api.Client) (api.KeyHistory, error) { return c.KeyHistory(cmd.Context()) })
		if err != nil {
			return err
		}
		return a.show(*format, list, anys(list.Events), func() error { return a.eventTable(list.Events, time.Now()) })
	}
	return cmd
}
