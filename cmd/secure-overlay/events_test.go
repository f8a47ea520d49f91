package main

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/api"
)

func exampleEvents(now time.Time) []api.Event {
	a, b := nodeRef("web-1"), nodeRef("db-1\x1b[2J")
	return []api.Event{
		{Seq: 1, Time: now.Add(-26 * time.Hour), Kind: api.EventAgentStarted, Text: "version v1.2.3"},
		{Seq: 2, Time: now.Add(-12 * time.Minute), Kind: api.EventRotationRequested, Epoch: 43, Driver: "ipsec", Node: &a, Text: "on command"},
		{Seq: 3, Time: now.Add(-11 * time.Minute), Kind: api.EventSwitched, Epoch: 43, Node: &b, Seconds: 0.254},
		{Seq: 4, Time: now.Add(-10 * time.Minute), Kind: api.EventPairRefused, Epoch: 43, Node: &b, Text: "it has no driver ipsec; keep it on wireguard, or repair it and rotate again"},
		{Seq: 5, Time: now.Add(-9 * time.Minute), Kind: api.EventEpochEnded, Epoch: 42, Seconds: 43200},
	}
}

func TestEventTable(t *testing.T) {
	now := time.Now()
	c := canned{keys: &script{events: exampleEvents(now)}}
	want := `AGO   EVENT               EPOCH  NODE      TOOK   WHAT
1d2h  agent-started       -      -         -      version v1.2.3
12m   rotation-requested  43     web-1     -      driver ipsec; on command
11m   switched            43     db-1` + "\ufffd" + `[2J  0.25s  -
10m   pair-refused        43     db-1` + "\ufffd" + `[2J  -      it has no driver ipsec; keep
                                                  it on wireguard, or repair it
                                                  and rotate again
9m    epoch-ended         42     -         12h    -
`
	for _, args := range [][]string{{"events"}, {"keys", "history"}} {
		r := against(t, c, args...)
		if d := cmp.Diff(want, r.out); r.code != 0 || d != "" {
			t.Errorf("%v: exit code %d\n%s", args, r.code, d)
		}
		narrow(t, r.out)
	}
	if r := against(t, c, "events", "--since", "11m30s", "-o", "jsonl"); r.code != 0 || strings.Count(r.out, "\n") != 3 || !strings.HasPrefix(r.out, `{"schema":1,"seq":3,`) {
		t.Errorf("exit code %d\n%s", r.code, r.out)
	}
	if r := against(t, c, "events", "--since", now.Add(-time.Hour).UTC().Format(time.RFC3339), "-o", "json"); r.code != 0 || strings.Contains(r.out, "agent-started") || !strings.Contains(r.out, `"kind": "switched"`) {
		t.Errorf("exit code %d\n%s", r.code, r.out)
	}
	if r := against(t, canned{keys: &script{}}, "events"); r.code != 0 || r.out != "" || r.err != "no events\n" {
		t.Errorf("exit code %d\n%s%s", r.code, r.out, r.err)
	}
	for _, args := range [][]string{
		{"--since", "yesterday"}, {"--since", "-1h"}, {"--limit", "0"}, {"--limit", "10001"}, {"--type", "switchd"}, {"--follow", "-o", "json"}, {"-f", "-o", "yaml"},
	} {
		if r := against(t, c, append([]string{"events"}, args...)...); r.code != 2 || !strings.Contains(r.err, "fix: ") {
			t.Errorf("%v: exit code %d\n%s", args, r.code, r.err)
		}
	}
}

// Following shows what was there and what comes, each once, until the end.
func TestEventsFollow(t *testing.T) {
	all := exampleEvents(time.Now())
	s := &growing{script: script{events: all}, shown: 2}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	out := &lineCounter{}
	r := with(t, canned{keys: &s.script, events: s}, func(a *app, _ *api.Client) int {
		a.out.W = out
		out.at = func(n int) {
			if n == len(all) {
				cancel()
			}
		}
		return a.report(a.followEvents(ctx, "jsonl", api.EventQuery{Limit: 10}))
	})
	if r.code != 0 {
		t.Errorf("exit code %d: %s", r.code, r.err)
	}
	for i, kind := range []string{"agent-started", "rotation-requested", "switched", "pair-refused", "epoch-ended"} {
		if line := strings.Split(out.text.String(), "\n")[i]; !strings.Contains(line, `"kind":"`+kind+`"`) {
			t.Errorf("line %d is %s", i, line)
		}
	}
}

// growing has one more event at each question.
type growing struct {
	script
	shown int
}

func (g *growing) Events(ctx context.Context, q api.EventQuery) ([]api.Event, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := script{events: exampleEvents(time.Now())[:g.shown]}
	g.shown = min(g.shown+2, 5)
	return s.Events(ctx, q)
}

// lineCounter calls at when it has got so many lines.
type lineCounter struct {
	text strings.Builder
	at   func(lines int)
}

func (l *lineCounter) Write(p []byte) (int, error) {
	n, err := l.text.Write(p)
	l.at(strings.Count(l.text.String(), "\n"))
	return n, err
}

func TestMetricsCommand(t *testing.T) {
	c := canned{metrics: func(_ context.Context, w io.Writer) error {
		_, err := io.WriteString(w, "secure_overlay_members 3\n")
		return err
	}}
	if r := against(t, c, "metrics"); r.code != 0 || r.out != "secure_overlay_members 3\n" {
		t.Errorf("exit code %d\n%s%s", r.code, r.out, r.err)
	}
	if r := against(t, canned{}, "metrics"); r.code != 1 || !strings.Contains(r.err, "this agent has no metrics") {
		t.Errorf("exit code %d\n%s%s", r.code, r.out, r.err)
	}
}
