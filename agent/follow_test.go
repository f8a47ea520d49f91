package agent

import (
	"context"
	"log/slog"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/events"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

// TestSettled: a plan has to be carried out again if devices or pairs differ;
// what is only said or asked for makes no other spec.
func TestSettled(t *testing.T) {
	plan := func(change func(p *rotate.Plan)) rotate.Plan {
		p := rotate.Plan{Devices: []ids.Epoch{1, 2}, Pairs: []rotate.Pair{{Peer: ids.NodeID{2}, Epoch: 1, Key: 7, Main: true}}}
		change(&p)
		return p
	}
	for name, c := range map[string]struct {
		change func(p *rotate.Plan)
		want   bool
	}{
		"nothing":       {func(*rotate.Plan) {}, true},
		"a device less": {func(p *rotate.Plan) { p.Devices = p.Devices[1:] }, false},
		"a pair less":   {func(p *rotate.Plan) { p.Pairs = nil }, false},
		"a route":       {func(p *rotate.Plan) { p.Pairs[0].Main = false }, false},
		"a sending half": {func(p *rotate.Plan) {
			p.Pairs[0].Send = true
		}, false},
		"what is asked for and said": {func(p *rotate.Plan) {
			p.Agree, p.Probe, p.Send = make([]rotate.Wanted, 1), make([]rotate.Probe, 1), make([]rotate.Outgoing, 1)
		}, true},
		"what is reported": {func(p *rotate.Plan) {
			p.Progress, p.Blocked, p.Wake = make([]rotate.Progress, 1), "waits", time.Unix(1, 0)
		}, true},
	} {
		if got := settled(plan(func(*rotate.Plan) {}), plan(c.change)); got != c.want {
			t.Errorf("%s: settled %t, want %t", name, got, c.want)
		}
	}
}

// TestFollow: a turn whose plan differs from what the drivers were set to is
// followed by another at once, maxHot times; one that has nothing left to do
// waits for the next thing that is due.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()).start(), w.machine(2, blue()).start()
		w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
		<-time.After(2 * resync)
		a.look(func(l *loop) {
			follow := func() time.Duration { return l.follow(context.Background(), l.lastIn) }
			if next := follow(); next <= 0 || next > resync || l.rot.hot != 0 {
				t.Errorf("at rest: the next turn in %s, %d hot ones", next, l.rot.hot)
			}
			l.rot.set = rotate.Plan{}
			for i := range maxHot {
				if next := follow(); next != 0 || l.rot.hot != i+1 {
					t.Errorf("turn %d of a plan that is not carried out: the next in %s, %d hot ones", i+1, next, l.rot.hot)
				}
			}
			if next := follow(); next <= 0 || l.rot.hot != 0 {
				t.Errorf("after %d of them: the next turn in %s, %d hot ones", maxHot, next, l.rot.hot)
			}
		})
		turns := func() (n ids.Revision) { a.look(func(l *loop) { n = l.round }); return n }
		before := turns()
		<-time.After(10 * resync)
		if n := turns() - before; n < 9 || n > 12 {
			t.Errorf("%d turns in %s at rest", n, 10*resync)
		}
	})
}

// TestRefusalIsToldOnce: that this node cannot follow to an epoch, or waits with
// it, is an event once for each of the two causes, however often it is found
// and whatever the reason's words are meanwhile.
func TestRefusalIsToldOnce(t *testing.T) {
	log, err := events.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	l := newLoop(New(Options{Log: slog.New(slog.DiscardHandler), Events: log}), keystore.Identity{ID: ids.NodeID{1}}, files{})
	requested, refused, blocked := string(api.EventRotationRequested), string(api.EventRotationRefused), string(api.EventBlocked)
	refusals := uint64(0)
	for _, step := range []struct {
		name    string
		target  ids.Epoch
		unable  string
		blocked string
		pausing bool
		want    []string // kinds of the events
	}{
		{name: "at the start", target: 1},
		{name: "a target that this node can follow", target: 2, want: []string{requested}},
		{name: "it cannot", target: 3, unable: "no ESP", blocked: "waits: no ESP", want: []string{requested, refused}},
		{name: "still not", target: 3, unable: "no ESP", blocked: "waits: no ESP"},
		{name: "in other words", target: 3, unable: "no ESP either way"},
		{name: "it can now, and waits", target: 3, blocked: "node 2 holds epoch 1", want: []string{blocked}},
		{name: "for somebody else", target: 3, blocked: "node 3 holds epoch 1"},
		{name: "for nobody", target: 3},
		{name: "for the first one again", target: 3, blocked: "node 2 holds epoch 1"},
		{name: "the last start was just now", target: 4, blocked: "began 1 s before", pausing: true, want: []string{requested}},
		{name: "it waits with the next one, too", target: 4, blocked: "node 2 holds epoch 1", want: []string{blocked}},
		{name: "and cannot follow to the one after", target: 5, unable: "no ESP", want: []string{requested, refused}},
	} {
		seen, err := log.Read(events.Query{})
		if err != nil {
			t.Fatal(err)
		}
		l.target = item.Target{Epoch: step.target, Driver: config.DriverAuto, Reason: item.ReasonManual}
		l.unable, l.facts.Plan = step.unable, rotate.Plan{Blocked: step.blocked, Pausing: step.pausing}
		for range 3 {
			l.noteTarget()
		}
		all, err := log.Read(events.Query{})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range all[len(seen):] {
			got = append(got, e.Kind)
			if e.Epoch != step.target || e.Kind != requested && e.Text != step.unable && e.Text != step.blocked {
				t.Errorf("%s: event %+v", step.name, e)
			}
		}
		if diff := cmp.Diff(step.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", step.name, diff)
		}
		if slices.Contains(step.want, refused) || slices.Contains(step.want, blocked) {
			refusals++
		}
		if n := l.rot.counts.Refusals; n != refusals {
			t.Errorf("%s: %d refusals counted, want %d", step.name, n, refusals)
		}
	}
}
