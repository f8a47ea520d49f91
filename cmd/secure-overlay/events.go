package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
)

// followPoll is how often --follow asks for new events. An agent without any
// answers from memory.
const followPoll = 500 * time.Millisecond

// eventFlags are those of the command events.
type eventFlags struct {
	since  string
	kinds  []string
	limit  int
	follow bool
}

func (a *app) eventsCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "events", Aliases: []string{"event"}, Short: "List what happened on this node: rotations, refusals, restarts", Args: args(),
		Long: `List what happened on this node, oldest first. The log outlives the agent; what
is older than about 5,000 to 10,000 events is dropped.`,
	}
	format := a.output(cmd)
	var o eventFlags
	f := cmd.Flags()
	f.StringVar(&o.since, "since", "", "how far to go back (90m, 24h), or a time (2006-01-02T15:04:05Z)")
	f.StringSliceVar(&o.kinds, "type", nil, "only events of this type; may be repeated")
	f.IntVarP(&o.limit, "limit", "n", 100, fmt.Sprintf("the newest so many, 1 to %d; with --follow to begin with (default then: 10)", api.MaxEvents))
	f.BoolVarP(&o.follow, "follow", "f", false, "go on with events as they happen, until Ctrl-C")
	_ = cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions(kindNames(), cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if o.follow && !f.Changed("limit") && o.since == "" {
			o.limit = 10
		}
		q, err := o.query(time.Now())
		if err != nil {
			return err
		}
		if o.follow {
			return a.followEvents(cmd.Context(), *format, q)
		}
		list, err := ask(cmd.Context(), a, func(c *api.Client) (api.EventList, error) { return c.Events(cmd.Context(), q) })
		if err != nil {
			return err
		}
		return a.show(*format, list, anys(list.Events), func() error { return a.eventTable(list.Events, time.Now()) })
	}
	return cmd
}

func kindNames() []string {
	var out []string
	for _, k := range api.EventKinds() {
		out = append(out, string(k))
	}
	return out
}

// query checks the flags.
func (o eventFlags) query(now time.Time) (api.EventQuery, error) {
	q := api.EventQuery{Limit: o.limit}
	if o.limit < 1 || o.limit > api.MaxEvents {
		return q, &usageError{msg: fmt.Sprintf("--limit %d: want 1 to %d", o.limit, api.MaxEvents), fix: "--limit 100"}
	}
	for _, k := range o.kinds {
		q.Kinds = append(q.Kinds, api.EventKind(k)) // the agent knows which there are
	}
	if o.since == "" {
		return q, nil
	}
	if d, err := time.ParseDuration(o.since); err == nil && d > 0 {
		q.Since = now.Add(-d)
		return q, nil
	}
	at, err := time.Parse(time.RFC3339, o.since)
	if err != nil {
		return q, &usageError{msg: fmt.Sprintf("--since %q is neither a duration nor a time", o.since), fix: "--since 24h, or --since 2006-01-02T15:04:05Z"}
	}
	q.Since = at
	return q, nil
}

// followEvents prints events as they come, until ctx ends, which is no error.
func (a *app) followEvents(ctx context.Context, format cli.Format, q api.EventQuery) error {
	if format != cli.FormatTable && format != cli.FormatJSONL {
		return &usageError{msg: fmt.Sprintf("--follow has no end, so its output cannot be one %s document", format), fix: "secure-overlay events --follow -o jsonl"}
	}
	_, err := ask(ctx, a, func(c *api.Client) (struct{}, error) {
		tick := time.NewTicker(followPoll)
		defer tick.Stop()
		for {
			list, err := c.Events(ctx, q)
			if err != nil && ctx.Err() == nil {
				return struct{}{}, err
			}
			for _, e := range list.Events {
				q.After, q.Limit = e.Seq, api.DefaultEvents
			}
			err = a.show(format, list, anys(list.Events), func() error { return a.eventLines(list.Events) })
			if err == nil {
				err = a.outErr
			}
			if err != nil {
				return struct{}{}, err
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return struct{}{}, nil
			}
		}
	})
	return err
}

// eventTable lists events with their age.
func (a *app) eventTable(list []api.Event, now time.Time) error {
	if len(list) == 0 {
		a.say("no events")
		return nil
	}
	t := cli.NewTable("ago", "event", "epoch", "node", "took", "what")
	t.Wrap(80)
	for _, e := range list {
		t.Row(cli.Ago(e.Time, now), kindCell(e.Kind), epochText(e), nodeText(e), tookText(e.Seconds), whatText(e))
	}
	return t.Print(a.out)
}

// eventLines prints events one by one, for a table that has no end.
func (a *app) eventLines(list []api.Event) error {
	for _, e := range list {
		kind := kindCell(e.Kind)
		a.print("%s  %s  %5s  %-12s  %5s  %s", e.Time.Local().Format("15:04:05"), a.out.Paint(kind.Style, fmt.Sprintf("%-18s", cli.Clean(kind.Text))),
			epochText(e), cli.Clean(nodeText(e)), tookText(e.Seconds), cli.Clean(whatText(e)))
	}
	return nil
}

func kindCell(k api.EventKind) cli.Cell {
	c := cli.Cell{Text: string(k)}
	switch k {
	case api.EventRotationRefused, api.EventPairRefused, api.EventBlocked:
		c.Style = cli.Warn
	case api.EventSwitched:
		c.Style = cli.Good
	}
	return c
}

func epochText(e api.Event) string {
	if e.Epoch == 0 {
		return "-"
	}
	return fmt.Sprint(e.Epoch)
}

func nodeText(e api.Event) string {
	if e.Node == nil {
		return "-"
	}
	return node(*e.Node)
}

// tookText says seconds in the precision that fits them.
func tookText(s float64) string {
	switch {
	case s <= 0:
		return "-"
	case s < 10:
		return fmt.Sprintf("%.2fs", s)
	case s < 100:
		return fmt.Sprintf("%.1fs", s)
	}
	return cli.Span(time.Duration(s * float64(time.Second)))
}

// whatText is the driver and the text.
func whatText(e api.Event) string {
	switch {
	case e.Driver == "":
		return e.Text
	case e.Text == "":
		return "driver " + e.Driver
	}
	return "driver " + e.Driver + "; " + e.Text
}

func (a *app) metricsCmd() *cobra.Command {
	return &cobra.Command{
		Use: "metrics", Short: "Print the agent's metrics in Prometheus' text format", Args: args(),
		Long: `Print the agent's metrics in Prometheus' text format. To let Prometheus read them
itself, set metrics.listen in the configuration, or ask the socket:

  curl --unix-socket /run/secure-overlay/agent.sock http://agent/v1/metrics`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			text, err := ask(cmd.Context(), a, func(c *api.Client) ([]byte, error) { return c.Metrics(cmd.Context()) })
			if err != nil {
				return err
			}
			if _, err := a.out.W.Write(text); err != nil {
				return fmt.Errorf("write output: %w", err)
			}
			return nil
		},
	}
}
