package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
)

func (a *app) issuerRevoke() *cobra.Command {
	cmd := &cobra.Command{
		Use: "revoke ISSUER", Short: "Take an issuer key out of force, for good", Args: args("ISSUER"),
		ValidArgsFunction: a.complete(issuerNames),
		Long: `Take an issuer key out of force, for good: because it was stolen, or because its
node is gone. ISSUER is the name or the ID of its node, its fingerprint, or its key.

Certificates that it has signed are believed only by nodes that knew them before, and
their nodes get new ones from another issuer at once: make that other issuer first.
Nothing that it signs from now on has any effect. Nodes that it let in stay; look through
secure-overlay members, and revoke those you do not know. If the machine itself is in
wrong hands, revoke it, too: secure-overlay revoke NODE.

Nodes that the issuer has revoked stay out, unless --undo-revocations says that the
key was misused for that.

This takes the root key, which can stay on a machine of its own:

  on any node          secure-overlay issuer revoke ISSUER
  with the root key    secure-overlay issuer sign --root-key FILE REQUEST
  on any node          secure-overlay issuer revoke --signed SIGNED

Where the root key is at hand on the node, --root-key FILE does all three.`,
	}
	format := a.output(cmd)
	var req api.IssuerRevocationRequest
	f := cmd.Flags()
	root := f.String("root-key", "", "file with the root key that init wrote")
	signed := f.Bool("signed", false, "the argument is what issuer sign printed; - reads standard input")
	f.StringVar(&req.Reason, "reason", "", "one line for people; every node keeps it")
	f.BoolVar(&req.Undo, "undo-revocations", false, "let nodes back in that this issuer has revoked")
	f.BoolVar(&req.Force, "force", false, "also if no other issuer is known")
	wait := f.Bool("wait", false, "wait until every node that can be reached has applied it")
	timeout := f.Duration("timeout", time.Minute, "with --wait: how long")
	_ = cmd.MarkFlagFilename("root-key")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case *timeout <= 0:
			return &usageError{msg: "--timeout must be more than zero", fix: "--timeout 1m"}
		case *signed && (*root != "" || req != api.IssuerRevocationRequest{}):
			return &usageError{msg: "--signed takes what was signed as it is", fix: cmd.CommandPath() + " --signed SIGNED"}
		}
		text, err := a.lineOf(args[0])
		if err != nil {
			return err
		}
		if !*signed {
			req.Issuer = text
			var printed bool
			text, printed, err = a.rootSays(*root, *format, func() (rootRequest, error) { return a.draftIssuerRevocation(cmd.Context(), req) })
			if err != nil || printed {
				return err
			}
		}
		return a.revokeIssuer(cmd.Context(), text, *format, *wait, *timeout)
	}
	return cmd
}

func (a *app) draftIssuerRevocation(ctx context.Context, req api.IssuerRevocationRequest) (rootRequest, error) {
	draft, err := ask(ctx, a, func(c *api.Client) (api.IssuerRevocationDraft, error) { return c.RequestIssuerRevocation(ctx, req) })
	if n := len(draft.Members); n > 0 {
		a.say("%s from this issuer; whoever you do not know among secure-overlay members, revoke", certificates(n))
	}
	return rootRequest{Request: draft.Request, Members: draft.Members}, err
}

func certificates(n int) string {
	if n == 1 {
		return "1 member has its certificate"
	}
	return cli.Plural(n, "member") + " have their certificates"
}

// revokeIssuer hands over what the root key has signed.
func (a *app) revokeIssuer(ctx context.Context, text string, format cli.Format, wait bool, timeout time.Duration) error {
	rev, err := ask(ctx, a, func(c *api.Client) (api.IssuerRevocationAnswer, error) {
		return c.RevokeIssuer(ctx, api.IssuerRevocationSigned{Revocation: text})
	})
	if err != nil {
		return err
	}
	all := true
	if wait {
		if all, err = ask(ctx, a, func(c *api.Client) (bool, error) { return a.waitIssuerRevocation(ctx, c, &rev, timeout) }); err != nil {
			return err
		}
	}
	if err := a.show(format, rev, nil, func() error {
		a.print("issuer %s is revoked; %d of %s have applied it", rev.Fingerprint, rev.Applied.OK, cli.Plural(rev.Applied.Total, "node"))
		return nil
	}); err != nil {
		return err
	}
	if !all {
		return fail(api.CodeDegraded, "nothing: they apply it when they are back",
			"issuer %s is revoked on every node that can be reached; missing: %s", rev.Fingerprint, waitingNames(rev.Waiting))
	}
	return nil
}

func (a *app) waitIssuerRevocation(ctx context.Context, c *api.Client, rev *api.IssuerRevocationAnswer, timeout time.Duration) (bool, error) {
	return a.waitSpread(ctx, timeout, spread{
		what: "issuer " + rev.Fingerprint + " is revoked", look: "secure-overlay issuer ls -o json", applied: rev.Applied, waiting: rev.Waiting,
		poll: func(ctx context.Context) (api.Count, []api.RevocationWait, error) {
			list, err := c.Issuers(ctx)
			for _, i := range list.Issuers {
				if i.Key == rev.Key && i.Revoked != nil {
					rev.IssuerRevocation = *i.Revoked
				}
			}
			return rev.Applied, rev.Waiting, err
		},
	})
}

// issuerNames completes the name of an issuer.
func issuerNames(ctx context.Context, c *api.Client) []string {
	list, err := c.Issuers(ctx)
	if err != nil {
		return nil
	}
	var out []string
	for _, i := range list.Issuers {
		if i.Revoked != nil {
			continue
		}
		name := i.Fingerprint
		if !i.ID.IsZero() {
			name = node(i.NodeRef)
		}
		out = append(out, strings.TrimSpace(name))
	}
	return out
}
