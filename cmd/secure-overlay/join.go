package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

func (a *app) joinCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "join [TOKEN]",
		Short: "Join a cluster with a token",
		Long: `Join a cluster with a token that "token create" printed on another node. Writes
this node's identity, and a commented configuration file if there is none.

Other users of the machine can see command lines. To keep the token from them,
give it on standard input, or in the environment:

  secure-overlay join - < FILE
  SECURE_OVERLAY_TOKEN=... secure-overlay join`,
		Args: argsFrom(0, "TOKEN"),
	}
	format := a.output(cmd)
	flags := settingFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		tok, err := a.readToken(args)
		if err != nil {
			return err
		}
		defer tok.Secret.Wipe()
		set := flags()
		seeds, err := joinSeeds(tok, set["seeds"])
		if err != nil {
			return err
		}
		cfg, path, err := a.plan(set)
		if err != nil {
			return err
		}
		id, err := a.joinCluster(cmd.Context(), cfg, tok, seeds)
		if err != nil {
			return err
		}
		id.Config = path
		// Seeds of the command line were for this join; the identity
		// remembers those of the cluster.
		wrote, err := writeNewConfig(path, cfg)
		if err != nil {
			return err
		}
		return a.show(*format, id, nil, func() error { return a.sayJoined(id, wrote) })
	}
	return cmd
}

// readToken takes the token from the argument, standard input or environment.
func (a *app) readToken(args []string) (keys.Token, error) {
	text := a.getenv("SECURE_OVERLAY_TOKEN")
	switch {
	case len(args) == 1:
		var err error
		if text, err = a.lineOf(args[0]); err != nil {
			return keys.Token{}, err
		}
	case text == "":
		return keys.Token{}, &usageError{msg: "secure-overlay join: TOKEN is missing", fix: "on a node that issues tokens: secure-overlay token create"}
	}
	tok, err := keys.ParseToken(strings.TrimSpace(text))
	if err != nil {
		return keys.Token{}, &usageError{msg: "the token cannot be used: " + err.Error(), fix: "copy the whole token that token create printed"}
	}
	return tok, nil
}

// joinSeeds are the addresses to ask: those of --seeds, else those in the
// token.
func joinSeeds(tok keys.Token, flag string) ([]netip.AddrPort, error) {
	if flag == "" {
		if len(tok.Seeds) == 0 {
			return nil, &usageError{msg: "the token names no address to join at", fix: "secure-overlay join TOKEN --seeds ADDRESS:7946"}
		}
		return tok.Seeds, nil
	}
	var out []netip.AddrPort
	for s := range strings.SplitSeq(flag, ",") {
		ap, err := netip.ParseAddrPort(strings.TrimSpace(s))
		if err != nil {
			return nil, &usageError{msg: fmt.Sprintf("--seeds %q is not address:port", s), fix: "--seeds 10.0.0.11:7946"}
		}
		out = append(out, ap)
	}
	return out, nil
}

// joinCluster asks the seeds one after the other for a certificate and
// persists the first answer.
func (a *app) joinCluster(ctx context.Context, cfg config.Config, tok keys.Token, seeds []netip.AddrPort) (identity, error) {
	store, err := keystore.Prepare(cfg.DataDir, cfg.Node.Name)
	if err != nil {
		return identity{}, err
	}
	self, err := store.Identity()
	if err != nil {
		return identity{}, errors.Join(err, store.Close())
	}
	list := cli.NewChecklist(a.err)
	var answer keys.JoinAnswer
	var errs []error
	for _, seed := range seeds {
		list.Step(cli.Running, "join", "asking "+seed.String())
		answer, err = askToJoin(ctx, list, noisenet.JoinOptions{
			Addr: seed, Token: tok, Node: self.Node, Noise: self.Noise.Public(), Hostname: cfg.Node.Name,
		})
		if err == nil {
			list.Step(cli.Done, "join", "admitted by "+seed.String())
			break
		}
		list.Step(cli.Failed, "join", "not admitted by "+seed.String())
		errs = append(errs, err)
		if ctx.Err() != nil || refused(err) {
			break // another seed would say the same
		}
	}
	if err != nil {
		return identity{}, errors.Join(notJoined(errs), store.Close())
	}
	if err := store.Adopt(tok.Trust(), answer); err != nil {
		return identity{}, errors.Join(err, store.Close())
	}
	id, err := describe(store, cfg)
	id.Changed = true
	return id, errors.Join(err, store.Close())
}

// askPause is how long a node that waits for approval waits between two
// questions.
const askPause = 2 * time.Second

// askToJoin asks one issuer, and as long as it says that the operator has to
// approve the node, asks again. Whoever interrupts it can go on with the same
// command later: the identity is on disk.
func askToJoin(ctx context.Context, list *cli.Checklist, o noisenet.JoinOptions) (keys.JoinAnswer, error) {
	tick := time.NewTicker(askPause)
	defer tick.Stop()
	for {
		answer, err := noisenet.Join(ctx, o)
		if !errors.Is(err, noisenet.ErrTokenWaiting) {
			return answer, err
		}
		list.Step(cli.Running, "join", fmt.Sprintf("waits for approval; on the issuer: secure-overlay token approve %s %s",
			o.Token.ID, o.Node.Public().ID().Short()))
		select {
		case <-tick.C:
		case <-ctx.Done():
			return keys.JoinAnswer{}, fail(api.CodeFailed, "the same command again goes on waiting", "not approved yet: %w", err)
		}
	}
}

// refused reports whether the cluster has said no, rather than not answered.
func refused(err error) bool {
	code, _ := classify(err)
	return code == api.CodeRefused
}

// notJoined says what to do when no seed admitted the node.
func notJoined(errs []error) error {
	last := errs[len(errs)-1]
	if refused(last) || len(errs) == 0 {
		return last
	}
	return fail(api.CodeFailed, "check that the agent runs there and that TCP to the address is open; other addresses: --seeds ADDRESS:7946",
		"no address of the token admitted this node: %w", errors.Join(errs...))
}

func (a *app) sayJoined(id identity, wroteConfig bool) error {
	verb := map[bool]string{true: "wrote", false: "kept "}
	a.print("joined cluster        %s", id.Cluster)
	a.print("       node           %s (%s)", cli.Clean(id.Node.Name), id.Node.ID)
	a.print("wrote  identity       %s", id.DataDir)
	a.print("%s  configuration  %s", verb[wroteConfig], id.Config)
	if wroteConfig {
		a.say("\nNetworks must be defined alike on all nodes: copy them from another node's file.")
	}
	a.nextSteps(id.Config)
	return nil
}
