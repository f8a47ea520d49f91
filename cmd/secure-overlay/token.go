package main

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
)

func (a *app) tokenCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "token", Aliases: []string{"tokens"}, Short: "Make, list and revoke join tokens", Args: cobra.ArbitraryArgs, RunE: a.group,
		Long: `Make, list and revoke join tokens, on a node that holds an issuer key (the one
where init ran). A token admits one node, or as many as it says, until it expires.`,
	}
	cmd.AddCommand(a.tokenCreate(), a.tokenLs(), a.tokenRevoke(), a.tokenDecide(true), a.tokenDecide(false))
	return cmd
}

func (a *app) tokenCreate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "create", Aliases: []string{"new"}, Short: "Make a token and print it, once", Args: args(),
		Long: `Make a token and print it, once: only a key derived from it is stored. Whoever
has it can join one node to the cluster until it expires, or as many as --uses says;
--name, --from and --approve narrow down which.

  secure-overlay token create | ssh HOST sudo secure-overlay join -
  secure-overlay token create --uses 20 --name 'web-*' --from 10.0.0.0/16`,
	}
	format := a.output(cmd)
	var req api.TokenRequest
	f := cmd.Flags()
	ttl := f.Duration("ttl", time.Hour, "how long it is valid")
	f.StringSliceVar(&req.Seeds, "seed", nil, "address:port at which the new node reaches this one (default: derived)")
	f.IntVar(&req.Uses, "uses", 1, "how many nodes it admits")
	f.StringVar(&req.Hostname, "name", "", "pattern that the names of the nodes match, such as 'web-*' (default: any)")
	from := f.StringSlice("from", nil, "network that the nodes join from, such as 10.0.0.0/16 (default: any)")
	f.BoolVar(&req.Approve, "approve", false, "each node waits until somebody approves it: token approve")
	f.StringVar(&req.Role, "role", "", "observer: on no network, sees who is there (default: a full member)")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{api.RoleObserver}, cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case *ttl <= 0:
			return &usageError{msg: "--ttl must be more than zero", fix: "--ttl 1h"}
		case req.Uses <= 0:
			return &usageError{msg: "--uses must be more than zero", fix: "--uses 1"}
		}
		var err error
		if req.Sources, err = sources(*from); err != nil {
			return err
		}
		req.TTL = api.Duration(*ttl)
		tok, err := ask(cmd.Context(), a, func(c *api.Client) (api.NewToken, error) { return c.CreateToken(cmd.Context(), req) })
		if err != nil {
			return err
		}
		return a.show(*format, tok, nil, func() error {
			// The token alone is data, so that it can be piped to join.
			a.print("%s", tok.Text)
			a.say("token %s admits %s until %s; there run:\n  secure-overlay join TOKEN",
				tok.ID, admits(tok.Token), tok.Expires.Local().Format("2006-01-02 15:04:05 MST"))
			return nil
		})
	}
	return cmd
}

// sources reads the prefixes of --from. A single address is one, too.
func sources(texts []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if addr, aerr := netip.ParseAddr(text); err != nil && aerr == nil {
			p, err = netip.PrefixFrom(addr, addr.BitLen()), nil
		}
		if err != nil {
			return nil, &usageError{msg: fmt.Sprintf("--from %q is no network", text), fix: "--from 10.0.0.0/16"}
		}
		if p != p.Masked() {
			return nil, &usageError{msg: fmt.Sprintf("--from %s has address bits behind its length", p), fix: "--from " + p.Masked().String()}
		}
		out = append(out, p)
	}
	return out, nil
}

// admits says whom a token admits.
func admits(t api.Token) string {
	out := cli.Plural(t.Limit, "node")
	if t.Limit == 1 {
		out = "one node"
	}
	if t.Role != "" {
		out += " as " + cli.Clean(t.Role)
	}
	if t.Hostname != "" {
		out += " named " + cli.Clean(t.Hostname)
	}
	if len(t.Sources) > 0 {
		out += " from " + joined(t.Sources)
	}
	if t.Approve {
		out += " with approval"
	}
	return out
}

func joined(list []netip.Prefix) string {
	var out []string
	for _, p := range list {
		out = append(out, p.String())
	}
	return strings.Join(out, ", ")
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
	t := cli.NewTable("id", "state", "used", "expires", "about")
	for _, k := range list {
		state := cli.Cell{Text: string(k.State), Style: cli.Dim}
		expires := "-"
		if k.State == api.TokenOpen {
			state.Style = cli.Good
			expires = "in " + cli.Span(k.Expires.Sub(now))
		}
		t.Row(k.ID, state, fmt.Sprintf("%d/%d", len(k.Uses), k.Limit), expires, aboutToken(k, now))
	}
	t.Wrap(80)
	return t.Print(a.out)
}

// aboutToken says in one line whom a token has admitted, who waits, and whom it
// is for.
func aboutToken(k api.Token, now time.Time) string {
	var parts, names []string
	for _, w := range k.Waiting {
		parts = append(parts, fmt.Sprintf("%s waits for approval (%s, from %s, for %s)", node(w.NodeRef), w.ID.Short(), w.From, cli.Ago(w.Since, now)))
	}
	for _, u := range k.Uses {
		names = append(names, node(u.NodeRef))
	}
	if len(names) > 0 {
		parts = append(parts, "admitted "+strings.Join(names, ", "))
	}
	if k.Hostname != "" || len(k.Sources) > 0 || k.Approve || k.Role != "" {
		parts = append(parts, "for "+admits(k))
	}
	return strings.Join(parts, "; ")
}

// tokenDecide is token approve, or token deny.
func (a *app) tokenDecide(approve bool) *cobra.Command {
	cmd := &cobra.Command{
		Use: "deny ID [NODE]", Short: "Refuse a node that waits for approval",
		Long:              "Refuse a node that waits for approval at a token. NODE is its name or its ID; it may be left\nout if only one waits.",
		Args:              argsFrom(1, "ID", "NODE"),
		ValidArgsFunction: a.complete(liveTokens),
	}
	if approve {
		cmd.Use, cmd.Short = "approve ID [NODE]", "Admit a node that waits for approval"
		cmd.Long = "Admit a node that waits for approval at a token that was made with --approve. NODE is\nits name or its ID; it may be left out if only one waits. token ls shows who waits."
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		d := api.JoinDecision{Approve: approve}
		if len(args) == 2 {
			d.Node = args[1]
		}
		done, err := ask(cmd.Context(), a, func(c *api.Client) (api.JoinDecided, error) { return c.DecideJoin(cmd.Context(), args[0], d) })
		if err != nil {
			return err
		}
		if approve {
			a.say("approved %s (%s): it is admitted when it asks again, within seconds", cli.Clean(node(done.Node)), done.Node.ID.Short())
		} else {
			a.say("denied %s (%s)", cli.Clean(node(done.Node)), done.Node.ID.Short())
		}
		return nil
	}
	return cmd
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
