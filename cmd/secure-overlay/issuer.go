package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

func (a *app) issuerCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "issuer", Aliases: []string{"issuers"}, Short: "List issuers, make further ones, and revoke them", Args: cobra.ArbitraryArgs, RunE: a.group,
		Long: `List issuers, make further ones, and revoke them. An issuer makes join tokens, renews
certificates, signs new key epochs and revokes nodes. The node where init ran is the
first one; with a second one the cluster does without the first.

Becoming an issuer takes the root key, which can stay on a machine of its own:

  on the node          secure-overlay issuer request
  with the root key    secure-overlay issuer sign --root-key FILE REQUEST
  on the node          secure-overlay issuer install DELEGATION

Where the root key is at hand on the node, issuer add does all three.`,
	}
	cmd.AddCommand(a.issuerLs(), a.issuerRequest(), a.issuerSign(), a.issuerInstall(), a.issuerAdd(), a.issuerRevoke())
	return cmd
}

func (a *app) issuerLs() *cobra.Command {
	cmd := &cobra.Command{Use: "ls", Aliases: []string{"list"}, Short: "List the issuer keys and their nodes", Args: args()}
	format := a.output(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		list, err := ask(cmd.Context(), a, func(c *api.Client) (api.IssuerList, error) { return c.Issuers(cmd.Context()) })
		if err != nil {
			return err
		}
		return a.show(*format, list, anys(list.Issuers), func() error {
			t := cli.NewTable("name", "id", "issuer", "members", "state")
			for _, i := range list.Issuers {
				name, id, state := "-", "-", i.State
				if !i.ID.IsZero() {
					name, id = node(i.NodeRef), i.ID.Short()
				}
				if i.Self {
					name += " *"
				}
				if i.Revoked != nil {
					state = "revoked"
				}
				t.Row(name, id, i.Fingerprint, i.Members, state)
			}
			return t.Print(a.out)
		})
	}
	return cmd
}

func (a *app) issuerRequest() *cobra.Command {
	cmd := &cobra.Command{
		Use: "request", Short: "Make this node's issuer key and print a request for the root key", Args: args(),
		Long: `Make this node's issuer key, if it has none, and print the request that the holder
of the root key signs. The request is no secret. Repeating it prints the same.`,
	}
	format := a.output(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		req, err := ask(cmd.Context(), a, func(c *api.Client) (api.IssuerRequest, error) { return c.RequestIssuer(cmd.Context()) })
		if err != nil {
			return err
		}
		return a.show(*format, req, nil, func() error {
			a.print("%s", req.Request)
			a.say("where the root key is, run:\n  secure-overlay issuer sign --root-key FILE REQUEST")
			return nil
		})
	}
	return cmd
}

// signed is what issuer sign prints for programs.
type signed struct {
	Schema     int         `json:"schema"`
	Cluster    string      `json:"cluster"`
	Node       api.NodeRef `json:"node"`
	Delegation string      `json:"delegation"`
	Expires    time.Time   `json:"expires"`
}

// delegationLife is how long a delegation lasts unless somebody says otherwise:
// as long as the one that init makes.
const delegationLife = keystore.DelegationLifetime

func (a *app) issuerSign() *cobra.Command {
	cmd := &cobra.Command{
		Use: "sign REQUEST", Short: "Sign a request with the root key", Args: args("REQUEST"),
		Long: `Sign a request with the root key: that of issuer request, and print the delegation for
issuer install; or that of issuer revoke, network update --plaintext or protocol floor
--lower, and print what the same command takes with --signed. It says first what is
asked for. Needs the root key file and nothing else: no agent, no network, and no
host of the cluster. REQUEST may be -, which reads standard input.`,
	}
	format := a.output(cmd)
	f := cmd.Flags()
	root := f.String("root-key", "", "file with the root key that init wrote")
	life := f.Duration("lifetime", delegationLife, "how long the node may be an issuer")
	_ = cmd.MarkFlagFilename("root-key")
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		text, err := a.lineOf(args[0])
		if err != nil {
			return err
		}
		if strings.HasPrefix(text, item.RootRequestTag) {
			if f.Changed("lifetime") {
				return &usageError{msg: "--lifetime is for a delegation; this request is for something else", fix: "leave it out"}
			}
			return a.signRootFile(*root, text, *format)
		}
		out, err := a.signIssuer(*root, text, *life)
		if err != nil {
			return err
		}
		return a.show(*format, out, nil, func() error {
			a.print("%s", out.Delegation)
			a.say("signed: node %s may be an issuer of cluster %s until %s; there run:\n  secure-overlay issuer install DELEGATION",
				out.Node.ID.Short(), out.Cluster, out.Expires.Local().Format(time.DateOnly))
			return nil
		})
	}
	return cmd
}

// signIssuer reads the root key for as long as it takes to sign once.
func (a *app) signIssuer(rootFile, request string, life time.Duration) (signed, error) {
	if err := checkSigning(rootFile, life); err != nil {
		return signed{}, err
	}
	if _, err := parseRequest(request); err != nil {
		return signed{}, err // before anybody types a passphrase
	}
	root, err := keystore.ReadRootKey(rootFile, a.rootPassphrase)
	if err != nil {
		return signed{}, err
	}
	defer root.Wipe()
	return signWith(root, request, life)
}

func checkSigning(rootFile string, life time.Duration) error {
	switch {
	case rootFile == "":
		return errNoRootKey()
	case life < time.Hour:
		return &usageError{msg: "--lifetime must be at least an hour", fix: "--lifetime " + delegationLife.String()}
	}
	return nil
}

func errNoRootKey() error {
	return &usageError{msg: "--root-key is missing: the file that init wrote and told you to take away", fix: "--root-key FILE"}
}

func parseRequest(text string) (keys.IssuerRequest, error) {
	req, err := keystore.ParseIssuerRequest(text)
	if err != nil {
		return req, &usageError{msg: "this is no request: " + err.Error(), fix: "copy the whole line that secure-overlay issuer request printed"}
	}
	return req, nil
}

func signWith(root keys.RootPrivate, request string, life time.Duration) (signed, error) {
	req, err := parseRequest(request)
	if err != nil {
		return signed{}, err
	}
	text, err := keystore.SignIssuer(root, req, time.Now(), life)
	if err != nil {
		return signed{}, err
	}
	return signed{
		Schema: api.Schema, Cluster: req.Cluster.String(), Node: api.NodeRef{ID: req.Node},
		Delegation: text, Expires: time.Now().Add(life).UTC().Truncate(time.Second),
	}, nil
}

func (a *app) issuerInstall() *cobra.Command {
	cmd := &cobra.Command{
		Use: "install DELEGATION", Short: "Make this node an issuer with the root's delegation", Args: args("DELEGATION"),
		Long: `Make this node an issuer with the delegation that issuer sign printed, from the next
start of its agent on. Restarting the agent loses no packet. DELEGATION may be -, which
reads standard input.`,
	}
	format := a.output(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		text, err := a.lineOf(args[0])
		if err != nil {
			return err
		}
		return a.install(cmd, *format, text)
	}
	return cmd
}

func (a *app) install(cmd *cobra.Command, format cli.Format, delegation string) error {
	done, err := ask(cmd.Context(), a, func(c *api.Client) (api.IssuerInstalled, error) {
		return c.InstallIssuer(cmd.Context(), api.IssuerInstall{Delegation: delegation})
	})
	if err != nil {
		return err
	}
	return a.show(format, done, nil, func() error {
		a.print("%s is an issuer from the next start of its agent on, until %s",
			cli.Clean(node(done.Node)), done.Expires.Local().Format(time.DateOnly))
		a.say("restart the agent; no packet is lost")
		return nil
	})
}

func (a *app) issuerAdd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "add", Short: "Make this node an issuer, with the root key at hand", Args: args(),
		Long: `Make this node an issuer: request, sign and install in one, where the root key can be
read on this machine. Take the root key away again afterwards.`,
	}
	format := a.output(cmd)
	f := cmd.Flags()
	root := f.String("root-key", "", "file with the root key that init wrote")
	life := f.Duration("lifetime", delegationLife, "how long the node may be an issuer")
	_ = cmd.MarkFlagFilename("root-key")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkSigning(*root, *life); err != nil {
			return err
		}
		// Read first, so that a wrong file leaves nothing behind.
		key, err := keystore.ReadRootKey(*root, a.rootPassphrase)
		if err != nil {
			return err
		}
		defer key.Wipe()
		req, err := ask(cmd.Context(), a, func(c *api.Client) (api.IssuerRequest, error) { return c.RequestIssuer(cmd.Context()) })
		if err != nil {
			return err
		}
		out, err := signWith(key, req.Request, *life)
		if err != nil {
			return err
		}
		return a.install(cmd, *format, out.Delegation)
	}
	return cmd
}

// lineOf is an argument, or one line of standard input for "-".
func (a *app) lineOf(arg string) (string, error) {
	if arg != "-" {
		return strings.TrimSpace(arg), nil
	}
	line, err := bufio.NewReader(io.LimitReader(a.stdin, 4096)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", fmt.Errorf("read standard input: %w", err)
	}
	return strings.TrimSpace(line), nil
}
