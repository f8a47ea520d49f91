package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/internal/nearest"
)

func (a *app) networkCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "network", Aliases: []string{"networks", "net"}, Short: "Show networks",
		Long: "Show networks. They are defined in the configuration file, under networks:.",
		Args: cobra.ArbitraryArgs, RunE: a.group,
	}
	cmd.AddCommand(a.networkLs(), a.networkInspect())
	return cmd
}

func (a *app) networkLs() *cobra.Command {
	cmd := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List the networks of this node", Args: args()}
	format := a.output(cmd)
	quiet := cmd.Flags().BoolP("quiet", "q", false, "print names only")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		list, err := ask(cmd.Context(), a, func(c *api.Client) (api.NetworkList, error) { return c.Networks(cmd.Context()) })
		if err != nil {
			return err
		}
		return a.show(*format, list, anys(list.Networks), func() error {
			if *quiet {
				for _, n := range list.Networks {
					a.print("%s", cli.Clean(n.Name))
				}
				return nil
			}
			return a.networkTable(list.Networks)
		})
	}
	return cmd
}

func (a *app) networkInspect() *cobra.Command {
	cmd := &cobra.Command{
		Use: "inspect NETWORK", Short: "Show one network with its endpoints, peers and conflicts", Args: args("NETWORK"),
		ValidArgsFunction: a.complete(liveNetworks),
	}
	format := a.output(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		d, err := ask(cmd.Context(), a, func(c *api.Client) (api.NetworkDetail, error) { return inspect(cmd.Context(), c, args[0]) })
		if err != nil {
			return err
		}
		return a.show(*format, d, nil, func() error { return a.networkDetail(d) })
	}
	return cmd
}

// inspect puts together what the agent says about one network.
func inspect(ctx context.Context, c *api.Client, name string) (api.NetworkDetail, error) {
	st, err := c.Status(ctx)
	if err != nil {
		return api.NetworkDetail{}, err
	}
	i := slices.IndexFunc(st.Networks, func(n api.Network) bool { return n.Name == name })
	if i < 0 {
		return api.NetworkDetail{}, noNetwork(name, st.Networks)
	}
	eps, err := c.Endpoints(ctx)
	if err != nil {
		return api.NetworkDetail{}, err
	}
	d := api.NetworkDetail{Schema: api.Schema, Network: st.Networks[i], Endpoints: []api.Endpoint{}, PeerList: []api.Peer{}}
	for _, e := range eps.Endpoints {
		if e.Network == name {
			d.Endpoints = append(d.Endpoints, e)
		}
	}
	for _, p := range st.Peers {
		if slices.Contains(p.Networks, name) {
			d.PeerList = append(d.PeerList, p)
		}
	}
	return d, nil
}

func noNetwork(name string, list []api.Network) error {
	names := make([]string, len(list))
	for i, n := range list {
		names[i] = n.Name
	}
	fix := "secure-overlay network ls"
	hint := ""
	if near, ok := nearest.Of(name, names); ok {
		hint = fmt.Sprintf(", did you mean %q?", near)
	}
	return fail(api.CodeNotFound, fix, "there is no network %q%s", name, hint)
}

func (a *app) networkDetail(d api.NetworkDetail) error {
	enc := encryptionCell(d.Network)
	a.print("network     %s", cli.Clean(d.Name))
	a.print("state       %s", a.out.Paint(stateStyle(d.State), string(d.State)))
	a.print("vni         %d", d.VNI)
	a.print("subnets     %s", join(d.Subnets))
	a.print("encryption  %s", a.out.Paint(enc.Style, enc.Text))
	a.print("mtu         %d (from %s)", d.MTU, cli.Clean(d.MTUFrom))
	if len(d.Blocks) > 0 {
		a.print("blocks      %s", join(d.Blocks))
	}
	a.print("peers       %d of %d connected", d.Peers.OK, d.Peers.Total)
	for _, c := range d.Conflicts {
		a.print("%s    %s", a.out.Paint(cli.Bad, "conflict"),
			cli.Clean(fmt.Sprintf("with %s: %s is %s here and %s there; not connected until both files agree", node(c.Peer), c.Field, c.Here, c.There)))
	}
	if len(d.PeerList) > 0 {
		a.print("")
		if err := a.peerTable(d.PeerList, time.Now()); err != nil {
			return err
		}
	}
	if len(d.Endpoints) > 0 {
		a.print("")
		return a.endpointTable(d.Endpoints)
	}
	return nil
}
