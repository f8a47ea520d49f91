package api

import (
	"context"
	"net/url"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/internal/events"
	"github.com/secure-overlay/secure-overlay/internal/ids"
)

func TestEventKinds(t *testing.T) {
	last := true
	for _, k := range EventKinds() {
		if k.AboutKeys() && !last {
			t.Errorf("%s stands behind kinds that are not about keys", k)
		}
		last = k.AboutKeys()
		if err := k.check(); err != nil {
			t.Error(err)
		}
	}
	if last || EventKind("other").AboutKeys() {
		t.Error("every kind is about keys")
	}
}

// What goes into the log comes out of the socket.
func TestEvents(t *testing.T) {
	log, err := events.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	base := time.Unix(1_700_000_000, 0).UTC()
	node := NodeRef{ID: ids.NodeIDOf([32]byte{1}), Name: "web-1"}
	for i, e := range []events.Event{
		{Kind: string(EventAgentStarted)},
		{Kind: string(EventRotationRequested), Epoch: 2, Driver: "auto", Node: node.ID, Name: node.Name, Text: "on command"},
		{Kind: string(EventSwitched), Epoch: 2, Node: node.ID, Name: node.Name, Seconds: 1.5},
		{Kind: "of a later version", Text: "is shown, too"},
	} {
		e.Time = base.Add(time.Duration(i) * time.Minute)
		if err := log.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	all := []Event{
		{Seq: 1, Time: base, Kind: EventAgentStarted},
		{Seq: 2, Time: base.Add(time.Minute), Kind: EventRotationRequested, Epoch: 2, Driver: "auto", Node: &node, Text: "on command"},
		{Seq: 3, Time: base.Add(2 * time.Minute), Kind: EventSwitched, Epoch: 2, Node: &node, Seconds: 1.5},
		{Seq: 4, Time: base.Add(3 * time.Minute), Kind: "of a later version", Text: "is shown, too"},
	}
	f := newFake()
	f.log = log
	_, c, _ := start(t, f)
	for name, tc := range map[string]struct {
		q    EventQuery
		want []Event
	}{
		"all":    {EventQuery{}, all},
		"since":  {EventQuery{Since: base.Add(time.Minute)}, all[1:]},
		"after":  {EventQuery{After: 2}, all[2:]},
		"limit":  {EventQuery{Limit: 1}, all[3:]},
		"kinds":  {EventQuery{Kinds: []EventKind{EventSwitched, EventAgentStarted}}, []Event{all[0], all[2]}},
		"all of": {EventQuery{Since: base, After: 1, Kinds: []EventKind{EventSwitched, EventRotationRequested}, Limit: 1}, all[1:2]},
		"none":   {EventQuery{After: 4}, []Event{}},
	} {
		got, err := c.Events(t.Context(), tc.q)
		if err != nil || got.Schema != Schema {
			t.Fatalf("%s: %+v, %v", name, got, err)
		}
		if d := cmp.Diff(tc.want, got.Events); d != "" {
			t.Errorf("%s (-want +got):\n%s", name, d)
		}
	}
	got, err := KeyEvents(t.Context(), LogEvents(log))
	if d := cmp.Diff(all[1:3], got); d != "" || err != nil {
		t.Errorf("about keys: %v\n%s", err, d)
	}
	if got, err := KeyEvents(context.Background(), LogEvents(nil)); got != nil || err != nil {
		t.Errorf("without a log: %v, %v", got, err)
	}
}

func FuzzEventQuery(f *testing.F) {
	for _, s := range []string{"since=2026-01-02T15:04:05.5Z&after=3&kind=switched&kind=blocked&limit=7", "limit=0", "kind=", "since=1h", "after=-1", "", "%zz"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, query string) {
		v, err := url.ParseQuery(query)
		if err != nil {
			return
		}
		q, err := eventQuery(v)
		if err != nil {
			if CodeOf(err) != CodeInvalid {
				t.Fatalf("code %s: %v", CodeOf(err), err)
			}
			return
		}
		again, err := eventQuery(q.values())
		if err != nil || !again.Since.Equal(q.Since) || again.After != q.After || again.Limit != q.Limit || len(again.Kinds) != len(q.Kinds) {
			t.Fatalf("%q: %+v became %+v, %v", query, q, again, err)
		}
	})
}
