package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/agent"
	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
)

// leaving are the options of one leave.
type leaving struct {
	yes, force bool
	timeout    time.Duration
	flags      map[string]string
}

func (a *app) leaveCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "leave", Short: "Leave the cluster, for good, and remove this node's keys", Args: args(),
		Long: `Leave the cluster, for good. The agent tells all other nodes, which take this one
out of their tunnels and forwarding at once and refuse it from then on; then it
ends as with down, and the keys and the state of this node are removed from the
disk. Configuration, event log and a root key stay. The host can join again with
a new token, as a new node.

Nodes that cannot be reached hear it from the others when they are back. If the
command is interrupted, or the machine fails, repeat it.

With --force a node leaves that holds the cluster's only issuer key; and a node
whose agent does not run, which cannot tell the others: run revoke elsewhere.

Exit code 0 if the node has left; 4 if it has and could not tell anybody; 3 if no
agent is running, 6 if it was refused.`,
	}
	format := a.output(cmd)
	flags := settingFlags(cmd)
	var o leaving
	f := cmd.Flags()
	f.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	f.BoolVar(&o.force, "force", false, "also with the only issuer key, or without an agent")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long to wait until the others know it")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if o.timeout <= 0 {
			return &usageError{msg: "--timeout must be more than zero", fix: "--timeout 30s"}
		}
		o.flags = flags()
		res, err := ask(cmd.Context(), a, func(c *api.Client) (left, error) { return a.leaveRunning(cmd.Context(), c, o) })
		if api.CodeOf(err) == api.CodeNotRunning {
			res, err = a.leaveOffline(cmd.Context(), o)
		}
		if err != nil {
			return err
		}
		if err := a.show(*format, res.LeaveResult, nil, func() error { a.sayLeft(res); return nil }); err != nil {
			return err
		}
		if res.untold {
			return fail(api.CodeDegraded, "on a node that has an issuer key: secure-overlay revoke "+nodeID(res.Node),
				"%s has left, but no other node was told: they wait for it to come back", node(res.Node))
		}
		return nil
	}
	return cmd
}

// left is what a leave came to.
type left struct {
	api.LeaveResult
	nothing bool // there was no membership to end
	untold  bool // no other node knows it, although there may be some
}

// leaveRunning has the agent tell the others and end, and waits until nothing of
// it is left.
func (a *app) leaveRunning(ctx context.Context, c *api.Client, o leaving) (left, error) {
	st, err := c.Status(ctx)
	if err != nil {
		return left{}, err
	}
	if err := a.confirmLeave(node(st.Node), endpointsHere(st), o.yes); err != nil {
		return left{}, err
	}
	end := agentEnd(c, st.PID)
	defer end.forget()
	d, err := c.Leave(ctx, api.LeaveRequest{Force: o.force})
	if err != nil {
		return left{}, err
	}
	_, err = a.waitSpread(ctx, o.timeout, spread{
		what: node(d.Node) + " has left", look: "secure-overlay leave", step: "told", applied: d.Told, waiting: d.Waiting,
		stands: "the node has left the cluster, but its agent runs and its keys are there",
		poll: func(ctx context.Context) (api.Count, []api.RevocationWait, error) {
			now, err := c.Departure(ctx)
			return now.Told, now.Waiting, err
		},
	})
	// Who has not said in time that it knows hears it from the others.
	if err != nil && api.CodeOf(err) != api.CodeTimeout {
		return left{}, err
	}
	res, err := c.FinishLeave(ctx)
	out := left{LeaveResult: res, untold: res.Told.Total > 0 && res.Told.OK == 0}
	if err != nil {
		return out, err
	}
	ctx, cancel := context.WithTimeout(ctx, lastWait)
	defer cancel()
	if err := end.wait(ctx); err != nil {
		return out, err
	}
	return out, checkWiped(res.DataDir)
}

// lastWait is how long an agent may take to end when everything is removed.
const lastWait = 30 * time.Second

// checkWiped looks whether the agent, whose exit code nobody here hears, has
// removed the keys.
func checkWiped(dir string) error {
	names, err := keystore.Remains(dir, agent.CacheFiles()...)
	if err == nil && len(names) > 0 {
		err = fail(api.CodeFailed, "secure-overlay leave", "the node has left, but %s still holds %s", dir, strings.Join(names, ", "))
	}
	return err
}

// confirmLeave asks before the keys go, if somebody is there to answer.
func (a *app) confirmLeave(name string, endpoints int, yes bool) error {
	what := fmt.Sprintf("%s leaves the cluster for good, and its keys are removed.", cli.Clean(name))
	if endpoints > 0 {
		what += fmt.Sprintf(" %s will lose their networks.", cli.Plural(endpoints, "attached endpoint"))
	}
	return a.confirm(what, "secure-overlay leave --yes", yes)
}

// leaveOffline finishes a leave that has told the others, or is forced to tell
// nobody.
func (a *app) leaveOffline(ctx context.Context, o leaving) (left, error) {
	cfg, err := a.load(o.flags)
	if err != nil {
		return left{}, err
	}
	res := left{LeaveResult: api.LeaveResult{
		Schema: api.Schema, DataDir: cfg.DataDir, Departure: api.Departure{Waiting: []api.RevocationWait{}}, Removed: []string{},
	}}
	store, err := keystore.Open(cfg.DataDir)
	switch {
	case errors.Is(err, keystore.ErrNotInitialised):
		res.nothing = true
		return res, nil
	case errors.Is(err, keystore.ErrLeft): // the others know, as far as they could be told
	case err == nil:
		self, err := store.Identity()
		res.Node, res.Left, res.untold = api.NodeRef{ID: self.ID, Name: self.Hostname}, store.Departed(), true
		if err := errors.Join(err, store.Close()); err != nil {
			return res, err
		}
		if !o.force {
			return res, notTold(res.Node, a.sameAgent(cfg.Path))
		}
		if err := a.confirmLeave(node(res.Node), 0, o.yes); err != nil {
			return res, err
		}
	case o.force && errors.Is(err, keystore.ErrCorrupt):
		res.untold = true
	default:
		return res, err
	}
	down, err := a.teardown(ctx, o.flags)
	if err != nil {
		return res, err
	}
	res.Removed = down.Removed
	return res, keystore.Wipe(cfg.DataDir, o.force, agent.CacheFiles()...)
}

// nodeID is what revoke can always be told; its place where it is not known.
func nodeID(r api.NodeRef) string {
	if r.ID.IsZero() {
		return "NODE"
	}
	return r.ID.String()
}

// notTold explains why a node without an agent does not simply leave.
func notTold(self api.NodeRef, more string) error {
	return fail(api.CodeNotRunning, "sudo secure-overlay up --detach"+more+", then leave; if it cannot start: secure-overlay leave --force, and on another node secure-overlay revoke "+self.ID.String(),
		"no agent is running, so nobody can be told that %s leaves", node(self))
}

func (a *app) sayLeft(res left) {
	if res.nothing {
		a.say("nothing to leave: there is no identity in %s", res.DataDir)
		return
	}
	for _, line := range res.Removed {
		a.print("removed  %s", cli.Clean(line))
	}
	a.print("removed  keys and state in %s", res.DataDir)
	if root := keystore.RootKeyIn(res.DataDir); root != "" {
		a.print("kept     root key %s: it is the cluster's, take it away", root)
	}
	if n := res.Told; n.Total > 0 {
		a.print("left     the cluster; %d of %s know it", n.OK, cli.Plural(n.Total, "other node"))
	} else {
		a.print("left     the cluster")
	}
	if len(res.Waiting) > 0 && res.Told.OK > 0 {
		a.say("these nodes will hear it from the others: %s", cli.Clean(waitingNames(res.Waiting)))
	}
}

// confirm asks a question, if somebody is there to answer.
func (a *app) confirm(what, always string, yes bool) error {
	in, ok := a.stdin.(*os.File)
	if yes || !ok || !cli.IsTerminal(in) || !a.err.Terminal {
		return nil
	}
	_, _ = fmt.Fprintf(a.err.W, "%s Continue? [y/N] ", what)
	var answer string
	if _, err := fmt.Fscanln(in, &answer); err != nil || (answer != "y" && answer != "Y" && answer != "yes") {
		return fail(api.CodeRefused, always, "nothing was removed")
	}
	return nil
}
