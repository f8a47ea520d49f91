package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/internal/nearest"
	"github.com/secure-overlay/secure-overlay/internal/netdef"
)

func (a *app) networkCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "network", Aliases: []string{"networks", "net"}, Short: "Create, change, show and remove networks",
		Long: `Create, show and remove networks of the cluster. A network that was created is known to
every node, and a node carries it while something there is attached to it.

Networks can stand in a configuration file, too, under networks:. Then the node
carries them always, and every node that is to connect them needs them in its file, or
the cluster has to have them with the same definition.`,
		Args: cobra.ArbitraryArgs, RunE: a.group,
	}
	cmd.AddCommand(a.networkCreate(), a.networkUpdate(), a.networkRm(), a.networkLs(), a.networkInspect())
	return cmd
}

func (a *app) networkCreate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "create NETWORK", Aliases: []string{"add"}, Short: "Give the cluster a network", Args: args("NETWORK"),
		Long: `Give the cluster a network, on a node that holds an issuer key. It is encrypted unless
--plaintext says otherwise. Nothing carries it until something is attached to it:

  secure-overlay network create blue --subnet 10.77.0.0/16
  secure-overlay attach blue --pid PID        # on any node`,
	}
	format := a.output(cmd)
	var req api.NetworkRequest
	f := cmd.Flags()
	f.StringSliceVar(&req.Subnets, "subnet", nil, "subnet of its endpoints, such as 10.77.0.0/16; several: IPv4 and IPv6")
	f.StringVar(&req.Driver, "encrypted", "", "encryption driver: auto, wireguard, userspace, ipsec or ipsec-userspace (default auto)")
	f.Lookup("encrypted").NoOptDefVal = "auto"
	f.BoolVar(&req.Plaintext, "plaintext", false, "readable by whoever sees the underlay; no encryption")
	f.Uint32Var((*uint32)(&req.VNI), "vni", 0, "VXLAN network identifier (default: derived from the name)")
	f.IntVar(&req.MTU, "mtu", 0, "MTU of its endpoints (default: what the underlay leaves)")
	f.StringSliceVar(&req.Ranges, "ip-range", nil, "part of a subnet from which addresses come that nobody chose")
	f.StringSliceVar(&req.Gateways, "gateway", nil, "address of each node in a subnet: resolver and way out (default: the second)")
	f.StringSliceVar(&req.Reserved, "reserve", nil, "address or prefix that no endpoint gets")
	f.BoolVar(&req.Internal, "internal", false, "no way out of it, and no names but those in it")
	f.BoolVar(&req.NoBroadcast, "no-broadcast", false, "broadcast and multicast do not leave their node")
	f.StringSliceVar(&req.Labels, "label", nil, "label for people and their programs, such as team=web")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case len(req.Subnets) == 0:
			return &usageError{msg: "--subnet is missing: where the addresses of its endpoints come from", fix: cmd.CommandPath() + " " + args[0] + " --subnet 10.77.0.0/16"}
		case req.Plaintext && req.Driver != "":
			return &usageError{msg: "--encrypted and --plaintext contradict each other", fix: "leave --plaintext out"}
		}
		req.Name = args[0]
		n, err := ask(cmd.Context(), a, func(c *api.Client) (api.NetworkAnswer, error) { return c.CreateNetwork(cmd.Context(), req) })
		if err != nil {
			return err
		}
		return a.show(*format, n, nil, func() error {
			how := "encrypted"
			if !n.Encrypted {
				how = "PLAINTEXT"
			}
			a.print("network %s of %s is there, %s, VNI %d", cli.Clean(n.Name), join(n.Subnets), how, n.VNI)
			return nil
		})
	}
	return cmd
}

func (a *app) networkRm() *cobra.Command {
	cmd := &cobra.Command{
		Use: "rm NETWORK", Aliases: []string{"remove"}, Short: "Take a network out of the cluster", Args: args("NETWORK"),
		ValidArgsFunction: a.complete(clusterNetworks),
		Long: `Take a network out of the cluster, on a node that holds an issuer key. One with
endpoints on some node is refused without --force, which disconnects them. A network of a
configuration file is removed there.`,
	}
	force := cmd.Flags().BoolP("force", "f", false, "also if it is in use")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		_, err := ask(cmd.Context(), a, func(c *api.Client) (struct{}, error) {
			return struct{}{}, c.RemoveNetwork(cmd.Context(), args[0], *force)
		})
		if err == nil {
			a.say("removed network %s", cli.Clean(args[0]))
		}
		return err
	}
	return cmd
}

func (a *app) networkLs() *cobra.Command {
	cmd := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List the networks of the cluster and of this node", Args: args()}
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
	n, err := find(ctx, c, name)
	if err != nil {
		return api.NetworkDetail{}, err
	}
	eps, err := c.Endpoints(ctx)
	if err != nil {
		return api.NetworkDetail{}, err
	}
	d := api.NetworkDetail{Schema: api.Schema, Network: n, Endpoints: []api.Endpoint{}, PeerList: []api.Peer{}}
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

// definedText says who defines a network.
func definedText(n api.Network) string {
	switch {
	case n.InFile && n.Cluster:
		return "in the cluster and in this node's configuration"
	case n.Cluster:
		return "in the cluster"
	}
	return "in this node's configuration"
}

// sayChange shows how far a change between encrypted and plaintext has come.
func (a *app) sayChange(c *api.NetworkChange) {
	if c == nil {
		return
	}
	how := "at once"
	if c.Migrate {
		how = "without loss"
	}
	a.print("changes     to %s, %s: %d of %d nodes have followed", formWord(c.Encrypted), how, c.Nodes.OK, c.Nodes.Total)
	for _, w := range c.Waiting {
		a.print("  waits for %s", cli.Clean(fmt.Sprintf("%s (%s), which has it %s", node(w.NodeRef), w.State, w.Form)))
	}
}

// sayOptions shows what is not as it is by default.
func (a *app) sayOptions(n api.Network) {
	for _, o := range []struct{ what, text string }{
		{"gateway", netdef.Text(n.Gateways)}, {"ip-range", netdef.Text(n.Ranges)}, {"reserved", netdef.Text(n.Reserved)}, {"labels", strings.Join(n.Labels, ", ")},
	} {
		if o.text != "" {
			a.print("%-11s %s", o.what, cli.Clean(o.text))
		}
	}
	if n.Internal {
		a.print("internal    yes: no way out of it")
	}
	if n.NoBroadcast {
		a.print("broadcast   no: frames for all stay on their node")
	}
}

func (a *app) networkDetail(d api.NetworkDetail) error {
	enc := encryptionCell(d.Network)
	a.print("network     %s", cli.Clean(d.Name))
	a.print("state       %s", a.out.Paint(stateStyle(d.State), string(d.State)))
	a.print("vni         %d", d.VNI)
	a.print("subnets     %s", join(d.Subnets))
	a.print("encryption  %s", a.out.Paint(enc.Style, enc.Text))
	a.sayOptions(d.Network)
	a.print("defined     %s", definedText(d.Network))
	a.sayChange(d.Change)
	if d.MTU != 0 {
		a.print("mtu         %d (from %s)", d.MTU, cli.Clean(d.MTUFrom))
	}
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
