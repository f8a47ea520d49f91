package main

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/netdef"
)

func (a *app) attachCmd() *cobra.Command {
	var req api.AttachRequest
	var ips []string
	var mac string
	cmd := &cobra.Command{
		Use:   "attach NETWORK (--netns PATH | --pid N | --host)",
		Short: "Plug a network namespace into a network",
		Long: `Plug a network namespace, such as a container's, into a network. Without --ip
the agent takes a free address of each subnet. Prints interface, address, MTU.

  secure-overlay attach blue --pid $(docker inspect -f '{{.State.Pid}}' web)
  secure-overlay attach blue --netns /run/netns/web --ip 10.77.0.5
  secure-overlay attach blue --host           # this machine itself

Endpoints have names in the network: NAME.NETWORK.overlay, and SERVICE.NETWORK.overlay for
all that have one --service. The resolver is the gateway of the network, on each node.

  secure-overlay attach blue --netns /run/netns/web --name web-1 --service web --default-route`,
		Args:              args("NETWORK"),
		ValidArgsFunction: a.complete(liveNetworks),
	}
	format := a.output(cmd)
	f := cmd.Flags()
	f.StringVar(&req.Netns, "netns", "", "path of the network namespace")
	f.IntVar(&req.PID, "pid", 0, "process inside the network namespace")
	f.BoolVar(&req.Host, "host", false, "this host itself")
	f.StringSliceVar(&ips, "ip", nil, "address in a subnet of the network; repeat it for IPv4 and IPv6")
	f.StringVar(&req.Ifname, "ifname", "", "interface name inside (default: eth0 or the next free; of the host so-NETWORK)")
	f.StringVar(&mac, "mac", "", "MAC address (default: it follows from network and address)")
	f.StringVar(&req.Name, "name", "", "name in the network (default: of the namespace in /run/netns, of the host's node, or the ID)")
	f.StringSliceVar(&req.Services, "service", nil, "name that it shares with others in the network; repeat it")
	f.BoolVar(&req.DefaultRoute, "default-route", false, "way to everywhere else, through this node")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req.Network = args[0]
		if err := fillAttach(cmd, &req, ips); err != nil {
			return err
		}
		if mac != "" {
			var err error
			if req.MAC, err = ids.ParseMAC(mac); err != nil {
				return &usageError{msg: fmt.Sprintf("--mac %q is no MAC address", mac), fix: "six bytes, such as 02:00:00:00:00:01"}
			}
		}
		ep, err := ask(cmd.Context(), a, func(c *api.Client) (api.EndpointAnswer, error) { return c.Attach(cmd.Context(), req) })
		if err != nil {
			return err
		}
		return a.show(*format, ep, nil, func() error {
			if err := a.endpointTable([]api.Endpoint{ep.Endpoint}); err != nil {
				return err
			}
			a.sayNames(ep.Endpoint)
			return nil
		})
	}
	return cmd
}

// sayNames tells what others can call an endpoint, and what it needs to know itself.
func (a *app) sayNames(e api.Endpoint) {
	domain := "." + strings.ToLower(e.Network) + ".overlay"
	names := []string{e.Name + domain}
	for _, s := range e.Services {
		names = append(names, s+domain)
	}
	a.print("")
	a.print("names      %s", cli.Clean(strings.Join(names, ", ")))
	if len(e.Resolvers) > 0 {
		a.print("resolver   %s (search %s)", netdef.Text(e.Resolvers), cli.Clean(domain[1:]))
	}
	if len(e.DefaultRoutes) > 0 {
		a.print("way out    by %s", netdef.Text(e.DefaultRoutes))
	}
}

// fillAttach checks what the command line says before the agent is asked.
func fillAttach(cmd *cobra.Command, req *api.AttachRequest, ips []string) error {
	netns, pid := cmd.Flags().Changed("netns"), cmd.Flags().Changed("pid")
	given := 0
	for _, yes := range []bool{netns, pid, req.Host} {
		if yes {
			given++
		}
	}
	switch {
	case given != 1:
		return &usageError{msg: "give one of --netns PATH, --pid N and --host", fix: "secure-overlay attach " + req.Network + " --pid N"}
	case pid && req.PID <= 0:
		return &usageError{msg: fmt.Sprintf("--pid %d is no process ID", req.PID)}
	case netns:
		// The agent has another working directory.
		abs, err := filepath.Abs(req.Netns)
		if err != nil || req.Netns == "" {
			return &usageError{msg: fmt.Sprintf("--netns %q is no path", req.Netns)}
		}
		req.Netns = abs
	}
	for _, s := range ips {
		ip, err := netip.ParseAddr(s)
		if err != nil {
			fix := "an address such as 10.77.0.5"
			if p, err := netip.ParsePrefix(s); err == nil {
				fix = "leave out the prefix length, the network knows it: --ip " + p.Addr().String()
			}
			return &usageError{msg: fmt.Sprintf("--ip %q is not an address", s), fix: fix}
		}
		req.Addresses = append(req.Addresses, ip)
	}
	return nil
}

func (a *app) detachCmd() *cobra.Command {
	return &cobra.Command{
		Use:               "detach ENDPOINT",
		Short:             "Unplug an endpoint, by its ID or the start of it",
		Args:              args("ENDPOINT"),
		ValidArgsFunction: a.complete(liveEndpoints),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := ask(cmd.Context(), a, func(c *api.Client) (struct{}, error) { return struct{}{}, c.Detach(cmd.Context(), args[0]) })
			if err == nil {
				a.say("detached %s", cli.Clean(args[0]))
			}
			return err
		},
	}
}

func (a *app) endpointCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "endpoint", Aliases: []string{"endpoints", "ep"}, Short: "Show endpoints", Args: cobra.ArbitraryArgs, RunE: a.group}
	ls := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List the endpoints on all nodes", Args: args()}
	format := a.output(ls)
	network := ls.Flags().String("network", "", "only those of this network")
	local := ls.Flags().Bool("local", false, "only those on this node")
	_ = ls.RegisterFlagCompletionFunc("network", a.complete(liveNetworks))
	ls.RunE = func(cmd *cobra.Command, _ []string) error {
		list, err := ask(cmd.Context(), a, func(c *api.Client) (api.EndpointList, error) { return c.Endpoints(cmd.Context()) })
		if err != nil {
			return err
		}
		kept := []api.Endpoint{}
		for _, e := range list.Endpoints {
			if (*network == "" || e.Network == *network) && (!*local || e.Local) {
				kept = append(kept, e)
			}
		}
		list.Endpoints = kept
		return a.show(*format, list, anys(kept), func() error { return a.endpointTable(kept) })
	}
	cmd.AddCommand(ls)
	return cmd
}

// endpointName is what an endpoint is called, if it is more than its ID.
func endpointName(e api.Endpoint) string {
	if e.Name == "" || e.Name == e.ID {
		return "-"
	}
	return e.Name
}

func (a *app) endpointTable(list []api.Endpoint) error {
	t := cli.NewTable("id", "name", "network", "node", "address", "ifname", "mtu", "state")
	var broken []api.Problem
	for _, e := range list {
		mtu := "-"
		if e.MTU > 0 {
			mtu = fmt.Sprint(e.MTU)
		}
		t.Row(e.ID, endpointName(e), e.Network, node(e.Node), firstOf(e.Addresses), e.Ifname, mtu, stateCell(e.State))
		if e.Problem != "" {
			broken = append(broken, api.Problem{Subject: e.ID, Message: e.Problem})
		}
	}
	if err := t.Print(a.out); err != nil {
		return err
	}
	a.problems("problem", broken)
	return nil
}
