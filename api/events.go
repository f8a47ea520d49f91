package api

import (
	"context"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/events"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nearest"
)

// Event is an entry of the node's event log.
type Event struct {
	// Seq numbers the events of a node from 1, without gaps, over restarts.
	Seq     uint64    `json:"seq"`
	Time    time.Time `json:"time"`
	Kind    EventKind `json:"kind"`
	Epoch   ids.Epoch `json:"epoch,omitempty"`
	Driver  string    `json:"driver,omitempty"` // wireguard, userspace, ipsec, ipsec-userspace or auto
	Node    *NodeRef  `json:"node,omitempty"`   // the other node it is about
	Text    string    `json:"text,omitempty"`   // for people
	Seconds float64   `json:"seconds,omitempty"`
}

// KeyEvent is an Event whose Kind.AboutKeys holds.
type KeyEvent = Event

// EventKind is a stable word for what happened.
type EventKind string

// The kinds of events.
const (
	EventRotationRequested EventKind = "rotation-requested" // a new target epoch; Text: why it was made
	EventEpochStarted      EventKind = "epoch-started"      // this node made its device of Epoch
	EventSwitched          EventKind = "switched"           // the pair with Node sends on Epoch, Seconds after it was asked for
	EventEpochEnded        EventKind = "epoch-ended"        // this node removed its device of Epoch, Seconds after it was made
	EventRotationRefused   EventKind = "rotation-refused"   // this node cannot follow the cluster to Epoch
	EventPairRefused       EventKind = "pair-refused"       // the pair with Node, last on Epoch, has no tunnel any more
	EventBlocked           EventKind = "blocked"            // this node does not start Epoch yet: something holds it up
	EventESPBlocked        EventKind = "esp-blocked"        // ESP toward Node gets no answer in one form, and the pair tries another
	EventNodeRevoked       EventKind = "node-revoked"       // Node was thrown out of the cluster; Text: the reason
	EventIssuerRevoked     EventKind = "issuer-revoked"     // the root took an issuer's place away; Text: which, and the reason
	EventStale             EventKind = CodeStale            // news of issuers may be withheld from this node; Text: how
	EventStaleOver         EventKind = "stale-over"         // it is not any more; Text: what was
	EventItemConflict      EventKind = CodeConflict         // two cluster items with one version came here; Text: which, and who signed them
	EventNodeLeft          EventKind = "node-left"          // Node has left the cluster
	EventNodeForgotten     EventKind = "node-forgotten"     // Node was dead, and its certificate ended long ago

	// About the certificate of Node, or of this node if there is no Node.
	EventCertificateExpiring EventKind = "certificate-expiring" // four fifths of its life are over
	EventCertificateExpired  EventKind = "certificate-expired"  // no new connections
	EventCertificateEnded    EventKind = "certificate-ended"    // its tunnels are taken down

	EventClock         EventKind = "clock"          // what is wrong with this node's clock, or that it is right again
	EventConfigChanged EventKind = "config-changed" // what has changed in it
	EventConfigRefused EventKind = "config-refused" // why it is not in force

	EventAgentStarted EventKind = "agent-started"
	EventAgentStopped EventKind = "agent-stopped"
)

// EventKinds lists the kinds, those about keys first.
func EventKinds() []EventKind {
	return []EventKind{
		EventRotationRequested, EventEpochStarted, EventSwitched, EventEpochEnded, EventRotationRefused, EventPairRefused, EventBlocked, EventESPBlocked,
		EventNodeRevoked, EventIssuerRevoked, EventNodeLeft, EventNodeForgotten, EventStale, EventStaleOver, EventItemConflict,
		EventCertificateExpiring, EventCertificateExpired, EventCertificateEnded, EventClock, EventConfigChanged, EventConfigRefused, EventAgentStarted, EventAgentStopped,
	}
}

// AboutKeys reports whether events of this kind belong to the history of keys.
func (k EventKind) AboutKeys() bool {
	switch k {
	case EventRotationRequested, EventEpochStarted, EventSwitched, EventEpochEnded, EventRotationRefused, EventPairRefused, EventBlocked, EventESPBlocked:
		return true
	default:
		return false
	}
}

// EventQuery selects events. Its zero value asks for the newest DefaultEvents.
type EventQuery struct {
	Since time.Time // not older than this; zero: all
	// After selects events with a greater Seq; 0: all. A caller that polls
	// with the last Seq it has misses nothing and sees nothing twice.
	After uint64
	Kinds []EventKind // empty: all
	// Limit is how many to return at most; 0: DefaultEvents. Of more, the
	// oldest are returned if After is set, else the newest.
	Limit int
}

// Limits of EventQuery.Limit.
const (
	DefaultEvents = 1000
	MaxEvents     = 10000
)

// EventList is the answer of GET /v1/events, oldest first.
type EventList struct {
	Schema int     `json:"schema"`
	Events []Event `json:"events"`
}

// LogEvents answers from the node's event log. A nil log has no events.
func LogEvents(log *events.Log) Events { return logEvents{log} }

type logEvents struct{ log *events.Log }

// Events implements Events.
func (l logEvents) Events(_ context.Context, q EventQuery) ([]Event, error) {
	if l.log == nil {
		return nil, nil
	}
	lq := events.Query{Since: q.Since, After: q.After, Limit: q.Limit}
	for _, k := range q.Kinds {
		lq.Kinds = append(lq.Kinds, string(k))
	}
	list, err := l.log.Read(lq)
	if err != nil {
		return nil, err
	}
	out := make([]Event, len(list))
	for i, e := range list {
		out[i] = Event{Seq: e.Seq, Time: e.Time, Kind: EventKind(e.Kind), Epoch: e.Epoch, Driver: e.Driver, Text: e.Text, Seconds: e.Seconds}
		if !e.Node.IsZero() {
			out[i].Node = &NodeRef{ID: e.Node, Name: e.Name}
		}
	}
	return out, nil
}

// KeyEvents returns the part of the log that Keys.KeyHistory answers.
func KeyEvents(ctx context.Context, ev Events) ([]KeyEvent, error) {
	q := EventQuery{Limit: MaxEvents}
	for _, k := range EventKinds() {
		if k.AboutKeys() {
			q.Kinds = append(q.Kinds, k)
		}
	}
	return ev.Events(ctx, q)
}

// values is the query as parameters of a URL.
func (q EventQuery) values() url.Values {
	v := url.Values{}
	if !q.Since.IsZero() {
		v.Set("since", q.Since.UTC().Format(time.RFC3339Nano))
	}
	if q.After > 0 {
		v.Set("after", strconv.FormatUint(q.After, 10))
	}
	for _, k := range q.Kinds {
		v.Add("kind", string(k))
	}
	if q.Limit != 0 {
		v.Set("limit", strconv.Itoa(q.Limit))
	}
	return v
}

// eventQuery reads the parameters; their names have been checked.
func eventQuery(v url.Values) (EventQuery, error) {
	q := EventQuery{Limit: DefaultEvents}
	invalid := func(name, want string) (EventQuery, error) {
		return q, NewError(CodeInvalid, fmt.Sprintf("parameter %s=%q: want %s", name, shorten(v.Get(name)), want), "")
	}
	for name, list := range v {
		if len(list) > 1 && name != "kind" {
			return invalid(name, "one value")
		}
	}
	var err error
	if v.Has("since") {
		if q.Since, err = time.Parse(time.RFC3339Nano, v.Get("since")); err != nil {
			return invalid("since", "a time such as 2006-01-02T15:04:05Z")
		}
	}
	if v.Has("after") {
		if q.After, err = strconv.ParseUint(v.Get("after"), 10, 64); err != nil {
			return invalid("after", "the number of an event")
		}
	}
	if v.Has("limit") {
		if q.Limit, err = strconv.Atoi(v.Get("limit")); err != nil || q.Limit < 1 || q.Limit > MaxEvents {
			return invalid("limit", fmt.Sprintf("1 to %d", MaxEvents))
		}
	}
	for _, k := range v["kind"] {
		if err := EventKind(k).check(); err != nil {
			return q, err
		}
		q.Kinds = append(q.Kinds, EventKind(k))
	}
	return q, nil
}

// check refuses a kind that there is not: it would select nothing in silence.
func (k EventKind) check() error {
	var names []string
	for _, known := range EventKinds() {
		if k == known {
			return nil
		}
		names = append(names, string(known))
	}
	hint := "one of " + strings.Join(names, ", ")
	if near, ok := nearest.Of(string(k), names); ok {
		hint = fmt.Sprintf("did you mean %q? %s", near, hint)
	}
	return NewError(CodeInvalid, fmt.Sprintf("there is no kind of event %q", shorten(string(k))), hint)
}

// KeyHistory is the answer of GET /v1/keys/history, oldest first.
type KeyHistory struct {
	Schema int        `json:"schema"`
	Events []KeyEvent `json:"events"`
}
