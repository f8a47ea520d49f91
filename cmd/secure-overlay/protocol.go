package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

func (a *app) protocolCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "protocol", Short: "Show and limit the protocol versions that nodes speak", Args: cobra.ArbitraryArgs, RunE: a.group,
	}
	cmd.AddCommand(a.protocolFloor())
	return cmd
}

func (a *app) protocolFloor() *cobra.Command {
	cmd := &cobra.Command{
		Use: "floor", Short: "Show, raise or lower the lowest protocol version of the cluster", Args: args(),
		Long: `Show the lowest protocol version that nodes of the cluster speak with each other, or
change it. Nodes whose program is older than that are refused by the others, until
they are updated; their tunnels stay as they are.

A node that holds an issuer key raises the floor. Lowering it takes the root key,
on any node; where no node can talk to another any more, on each.`,
	}
	format := a.output(cmd)
	f := cmd.Flags()
	raise := f.Uint8("raise", 0, "lowest version from now on")
	force := f.Bool("force", false, "with --raise: also if nodes are known that speak less")
	lower := f.Uint8("lower", 0, "lowest version from now on; needs --root-key")
	root := f.String("root-key", "", "with --lower: file with the root key that init wrote")
	_ = cmd.MarkFlagFilename("root-key")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkFloor(f.Changed("raise"), f.Changed("lower"), *force, *root); err != nil {
			return err
		}
		var p api.ProtocolAnswer
		var err error
		switch {
		case f.Changed("raise"):
			p, err = a.setFloor(cmd, api.FloorRequest{Raise: *raise, Force: *force})
		case f.Changed("lower"):
			p, err = a.lowerFloor(cmd, *root, *lower)
		default:
			p, err = ask(cmd.Context(), a, func(c *api.Client) (api.ProtocolAnswer, error) { return c.Protocol(cmd.Context()) })
		}
		if err != nil {
			return err
		}
		return a.show(*format, p, nil, func() error { a.sayFloor(p.Protocol, time.Now()); return nil })
	}
	return cmd
}

func checkFloor(raise, lower, force bool, root string) error {
	switch {
	case raise && lower:
		return &usageError{msg: "--raise and --lower contradict each other", fix: "give one of them"}
	case lower && root == "":
		return &usageError{msg: "--lower needs the root key: the file that init wrote and told you to take away", fix: "--lower N --root-key FILE"}
	case root != "" && !lower:
		return &usageError{msg: "--root-key is for --lower", fix: "--lower N --root-key FILE"}
	case force && !raise:
		return &usageError{msg: "--force is for --raise", fix: "--raise N --force"}
	}
	return nil
}

func (a *app) setFloor(cmd *cobra.Command, req api.FloorRequest) (api.ProtocolAnswer, error) {
	return ask(cmd.Context(), a, func(c *api.Client) (api.ProtocolAnswer, error) { return c.SetFloor(cmd.Context(), req) })
}

// lowerFloor signs with the root key, which the agent never sees.
func (a *app) lowerFloor(cmd *cobra.Command, rootFile string, least uint8) (api.ProtocolAnswer, error) {
	var cluster ids.ClusterID
	have, err := ask(cmd.Context(), a, func(c *api.Client) (api.ProtocolAnswer, error) {
		st, err := c.Status(cmd.Context())
		if err != nil {
			return api.ProtocolAnswer{}, err
		}
		cluster = st.Cluster
		return c.Protocol(cmd.Context())
	})
	if err != nil {
		return have, err
	}
	if least >= have.Floor {
		return have, &usageError{msg: fmt.Sprintf("the floor is %d: %d is not lower", have.Floor, least), fix: "secure-overlay protocol floor --raise N on a node with an issuer key"}
	}
	key, err := keystore.ReadRootKey(rootFile, a.rootPassphrase)
	if err != nil {
		return have, err
	}
	defer key.Wipe()
	raw, err := item.SignFloorRoot(cluster, key, item.Floor{Min: have.Floor, Generation: have.Generation}, least, time.Now())
	if err != nil {
		return have, err
	}
	return a.setFloor(cmd, api.FloorRequest{Item: raw})
}

func (a *app) sayFloor(p api.Protocol, now time.Time) {
	since := ""
	if !p.Since.IsZero() {
		since = "   set " + cli.Ago(p.Since, now) + " ago"
	}
	a.print("floor %d%s   this program speaks %d to %d", p.Floor, since, p.Min, p.Max)
}
