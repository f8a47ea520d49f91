package main

import (
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
)

func (a *app) tokenCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", Aliases: []string{"tokens"}, Short: "Make, list and revoke join tokens", Args: cobra.ArbitraryArgs, RunE: a.group,
		Long: `Make, list and revoke join tokens, on a node that holds an issuer key (the one
where init ran). A token admits one node, once, until it expires.`,
	}
	cmd.AddCommand(a.tokenCreate(), a.tokenLs(), a.tokenRevoke())
	return cmd
}

func (a *app) tokenCreate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "create", Aliases: []string{"new"}, Short: "Make a token and print it, once", Args: args(),
		Long: `Make a token and print it, once: only a key derived from it is stored. Whoever
has it can join one node to the cluster until it expires.

  secure-overlay token create | ssh HOST sudo secure-overlay join -`,
	}
	format := a.output(cmd)
	ttl := cmd.Flags().Duration("ttl", time.Hour, "how long it is valid")
	seeds := cmd.Flags().StringSlice("seed", nil, "address:port at which the new node reaches this one (default: derived)")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if *ttl <= 0 {
			return &usageError{msg: "--ttl must be more than zero", fix: "--ttl 1h"}
		}
		req := api.TokenRequest{TTL: api.Duration(*ttl), Seeds: *seeds}
		tok, err := ask(cmd.Context(), a, func(c *api.Client) (api.NewToken, error) { return c.CreateToken(cmd.Context(), req) })
		if err != nil {
			return err
		}
		return a.show(*format, tok, nil, func() error {
			// The token alone is data, so that it can be piped to join.
			a.print("%s", tok.Text)
			a.say("token %s admits one node until %s; on that node run:\n  secure-overlay join TOKEN",
				tok.ID, tok.Expires.Local().Format("2006-01-02 15:04:05 MST"))
			return nil
		})
	}
	return cmd
}

func (a *app) tokenLs() *cobra.Command {
	cmd := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List tokens, without their secrets", Args: args()}
	format := a.output(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		list, err := ask(cmd.Context(), a, func(c *api.Client) (api.TokenList, error) { return c.Tokens(cmd.Context()) })
		if err != nil {
			return err
		}
		return a.show(*format, list, anys(list.Tokens), func() error { return a.tokenTable(list.Tokens, time.Now()) })
	}
	return cmd
}

func (a *app) tokenTable(list []api.Token, now time.Time) error {
	t := cli.NewTable("id", "state", "created", "expires", "used by")
	for _, k := range list {
		state := cli.Cell{Text: string(k.State), Style: cli.Dim}
		expires := "-"
		if k.State == api.TokenOpen {
			state.Style = cli.Good
			expires = "in " + cli.Span(k.Expires.Sub(now))
		}
		by := ""
		if k.UsedBy != nil {
			by = node(*k.UsedBy)
		}
		t.Row(k.ID, state, cli.Ago(k.Created, now)+" ago", expires, by)
	}
	return t.Print(a.out)
}

func (a *app) tokenRevoke() *cobra.Command {
	return &cobra.Command{
		Use: "revoke ID", Aliases: []string{"rm"}, Short: "Make a token useless", Args: args("ID"),
		ValidArgsFunction: a.complete(liveTokens),
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := ask(cmd.Context(), a, func(c *api.Client) (struct{}, error) { return struct{}{}, c.RevokeToken(cmd.Context(), args[0]) })
			if err == nil {
				a.say("revoked token %s", cli.Clean(args[0]))
			}
			return err
		},
	}
}
