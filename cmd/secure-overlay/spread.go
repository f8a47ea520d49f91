package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
)

// spread is something that stands and that every node has to apply.
type spread struct {
	what    string // stands, for people, such as "web-3 is revoked"
	look    string // the command that shows how far it is
	step    string // what the nodes do; empty: applied
	stands  string // what is so after an interruption; empty: the revocation
	applied api.Count
	waiting []api.RevocationWait
	poll    func(context.Context) (api.Count, []api.RevocationWait, error)
}

// spreadSettle is for how long a node that seems lost is waited for: gossip
// takes some seconds to notice who is back.
const spreadSettle = 3 * time.Second

// waitSpread shows how far it is until every node that can be reached has applied
// it. all: nobody is missing.
func (a *app) waitSpread(ctx context.Context, timeout time.Duration, s spread) (all bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	step := cmp.Or(s.step, "applied")
	list := cli.NewChecklist(a.err)
	defer list.Break()
	start := time.Now()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		detail := fmt.Sprintf("[%d/%d] nodes", s.applied.OK, s.applied.Total)
		switch {
		case len(s.waiting) == 0:
			list.Step(cli.Done, step, detail)
			return true, nil
		case reachable(s.waiting) == 0 && time.Since(start) >= spreadSettle:
			list.Step(cli.Warning, step, detail)
			return false, nil
		}
		list.Step(cli.Running, step, detail)
		select {
		case <-tick.C:
		case <-ctx.Done():
			list.Step(cli.Failed, step, detail)
			if errors.Is(ctx.Err(), context.Canceled) {
				return false, fail(api.CodeFailed, s.look, "interrupted; %s", cmp.Or(s.stands, "the revocation stands"))
			}
			return false, fail(api.CodeTimeout, s.look, "%s, but these nodes have not said in %s that they applied it: %s",
				s.what, cli.Span(timeout), waitingNames(s.waiting))
		}
		applied, waiting, err := s.poll(ctx)
		switch {
		case err == nil:
			s.applied, s.waiting = applied, waiting
		case ctx.Err() == nil && api.CodeOf(err) != api.CodeTimeout:
			return false, err
		}
	}
}

// reachable counts those of whom gossip does not say that they are gone.
func reachable(list []api.RevocationWait) (n int) {
	for _, w := range list {
		if w.State == "alive" || w.State == "suspect" || w.State == "indirect" {
			n++
		}
	}
	return n
}
