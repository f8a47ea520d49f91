package main

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
)

// completionTime is how long a shell may wait for live names.
const completionTime = 200 * time.Millisecond

// complete offers live names from the agent for the first argument. Without
// an agent, or when it is slow, it offers nothing.
func (a *app) complete(names func(context.Context, *api.Client) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		parent := cmd.Context()
		if parent == nil {
			parent = context.Background()
		}
		ctx, cancel := context.WithTimeout(parent, completionTime)
		defer cancel()
		c, err := a.client()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		return names(ctx, c), cobra.ShellCompDirectiveNoFileComp
	}
}

// clusterNetworks completes the name of a network that can be removed.
func clusterNetworks(ctx context.Context, c *api.Client) []string {
	list, err := c.Networks(ctx)
	if err != nil {
		return nil
	}
	var out []string
	for _, n := range list.Networks {
		if n.Cluster {
			out = append(out, n.Name)
		}
	}
	return out
}

func liveNetworks(ctx context.Context, c *api.Client) []string {
	list, err := c.Networks(ctx)
	if err != nil {
		return nil
	}
	var out []string
	for _, n := range list.Networks {
		out = append(out, n.Name)
	}
	return out
}

func liveEndpoints(ctx context.Context, c *api.Client) []string {
	list, err := c.Endpoints(ctx)
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range list.Endpoints {
		if e.Local {
			out = append(out, e.ID+"\t"+e.Network+" "+firstOf(e.Addresses))
		}
	}
	return out
}

func liveTokens(ctx context.Context, c *api.Client) []string {
	list, err := c.Tokens(ctx)
	if err != nil {
		return nil
	}
	var out []string
	for _, t := range list.Tokens {
		if t.State == api.TokenOpen {
			out = append(out, t.ID)
		}
	}
	return out
}
