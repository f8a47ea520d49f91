package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
)

func (a *app) statusCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show networks, peers, and what is wrong",
		Long: `Show networks, peers, and what is wrong, with the command that fixes it.

Exit code 0 if everything works, also with warnings, 3 if no agent is running, 4 if
something is degraded.`,
		Args: args(),
	}
	format := a.output(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		st, err := ask(cmd.Context(), a, func(c *api.Client) (api.Status, error) { return c.Status(cmd.Context()) })
		if err != nil {
			return err
		}
		if err := a.show(*format, st, nil, func() error { return a.statusTable(st, time.Now()) }); err != nil {
			return err
		}
		if st.State != api.StateOK {
			return &exitError{api.CodeDegraded.ExitCode()}
		}
		return nil
	}
	return cmd
}

func (a *app) statusTable(st api.Status, now time.Time) error {
	state := a.out.Paint(stateStyle(st.State), string(st.State))
	a.print("%s   node %s (%s)   cluster %.8s   up %s", state,
		cli.Clean(st.Node.Name), st.Node.ID.Short(), st.Cluster, cli.Ago(st.Started, now))
	line := fmt.Sprintf("%d of %s alive", st.Members.OK, cli.Plural(st.Members.Total, "member"))
	if st.Driver.Label != "" {
		line += "   driver " + st.Driver.Label
	}
	if st.Protocol.Floor > st.Protocol.Min {
		line += fmt.Sprintf("   protocol floor %d", st.Protocol.Floor)
	}
	a.print("%s", cli.Clean(line))
	a.print("%s", cli.Clean(keyLine(st, now)))
	for _, r := range st.Driver.Refused {
		a.wrap("", fmt.Sprintf("driver %s not used: %s", r.Name, strings.TrimPrefix(r.Reason, "driver "+r.Name+": ")))
	}
	a.print("")
	if err := a.networkTable(st.Networks); err != nil {
		return err
	}
	if len(st.Peers) > 0 {
		a.print("")
		if err := a.peerTable(st.Peers, now); err != nil {
			return err
		}
	}
	if st.Keys.Blocked != "" {
		a.print("")
		a.wrap(a.out.Paint(cli.Bad, "blocked")+"  ", fmt.Sprintf("key epoch %d: %s", st.Keys.Target, st.Keys.Blocked))
	}
	if len(st.Problems) > 0 {
		a.print("")
		a.problems("problem", st.Problems)
	}
	if len(st.Warnings) > 0 {
		a.print("")
		a.problems("warning", st.Warnings)
	}
	return nil
}

// keyLine says how old the keys are and when they change.
func keyLine(st api.Status, now time.Time) string {
	k := st.Keys
	line := fmt.Sprintf("key epoch %d", st.Epoch)
	if k.Target > st.Epoch {
		line += fmt.Sprintf(" -> %d", k.Target)
	}
	if k.Target == 0 {
		return line
	}
	if !k.Started.IsZero() {
		line += "   " + cli.Ago(k.Started, now) + " old"
	}
	line += "   " + nextRotation(k.NextRotation, now)
	if k.OnTarget.OK < k.OnTarget.Total {
		line += fmt.Sprintf("   %d of %s on it", k.OnTarget.OK, cli.Plural(k.OnTarget.Total, "peer"))
	}
	return line
}

func (a *app) networkTable(list []api.Network) error {
	if len(list) == 0 {
		a.print("no networks; secure-overlay network create, or networks: in the configuration")
		return nil
	}
	t := cli.NewTable("network", "subnet", "encryption", "mtu", "endpoints", "peers")
	for _, n := range list {
		peers := cli.Cell{Text: countText(n.Peers)}
		if n.Peers.OK < n.Peers.Total || len(n.Conflicts) > 0 {
			peers.Style = cli.Warn
		}
		if n.State == api.StateUnused {
			// What carries it there, other nodes know.
			enc := cli.Cell{Text: "encrypted", Style: cli.Dim}
			if !n.Encrypted {
				enc = encryptionCell(n)
			}
			t.Row(n.Name, firstOf(n.Subnets), enc, "-", "not on this node", "-")
			continue
		}
		t.Row(n.Name, firstOf(n.Subnets), encryptionCell(n), n.MTU, fmt.Sprintf("%d/%d", n.EndpointsHere, n.EndpointsTotal), peers)
	}
	return t.Print(a.out)
}

func (a *app) peerTable(list []api.Peer, now time.Time) error {
	t := cli.NewTable("peer", "gossip", "underlay", "tunnel", "epoch", "pq", "handshake", "rx/tx", "mtu")
	for _, p := range list {
		tunnel := cli.Cell{Text: p.Tunnel, Style: cli.Dim}
		switch p.Tunnel {
		case api.TunnelUp:
			tunnel.Style = cli.Good
		case api.TunnelWaiting:
			tunnel.Style = cli.Warn
		}
		handshake, traffic, mtu, epoch := "-", "-", "-", "-"
		if p.Epoch != 0 {
			epoch = fmt.Sprint(p.Epoch)
		}
		if p.Tunnel != api.TunnelNone && p.Tunnel != "" {
			handshake = cli.Ago(p.LastHandshake, now)
			traffic = cli.Size(p.RxBytes) + "/" + cli.Size(p.TxBytes)
		}
		if p.InnerMTU > 0 {
			mtu = fmt.Sprint(p.InnerMTU)
		}
		// The port is one of three that everyone has.
		underlay := "-"
		if p.Underlay.IsValid() {
			underlay = p.Underlay.Addr().String()
		}
		t.Row(node(p.NodeRef), p.Gossip, underlay, tunnel, epoch, pqCell(p.PQ, p.Epoch), handshake, traffic, mtu)
	}
	return t.Print(a.out)
}

func (a *app) membersCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "members",
		Aliases: []string{"member"},
		Short:   "List the nodes of the cluster",
		Args:    args(),
	}
	format := a.output(cmd)
	revoked := cmd.Flags().Bool("revoked", false, "list the nodes that were thrown out instead")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *revoked {
			list, err := ask(cmd.Context(), a, func(c *api.Client) (api.RevocationList, error) { return c.Revocations(cmd.Context()) })
			if err != nil {
				return err
			}
			return a.show(*format, list, anys(list.Revocations), func() error { return a.revokedTable(list.Revocations, time.Now()) })
		}
		list, err := ask(cmd.Context(), a, func(c *api.Client) (api.MemberList, error) { return c.Members(cmd.Context()) })
		if err != nil {
			return err
		}
		return a.show(*format, list, anys(list.Members), func() error {
			t := cli.NewTable("name", "id", "state", "synced", "address", "networks", "seen")
			now := time.Now()
			for _, m := range list.Members {
				name, seen := node(m.NodeRef), cli.Ago(m.LastSeen, now)
				if m.Self {
					name, seen = name+" *", "self"
				}
				synced := "no"
				if m.Synced || m.Self {
					synced = "yes"
				}
				if !m.Left.IsZero() { // then only when it left matters
					synced, seen = "-", cli.Ago(m.Left, now)
				}
				t.Row(name, m.ID.Short(), m.State, synced, addr(m.Addr), strings.Join(m.Networks, ","), seen)
			}
			return t.Print(a.out)
		})
	}
	return cmd
}
