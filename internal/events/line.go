package events

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Event is one entry. Texts are cut to the limits of this package and hold no
// control characters when they are read back.
type Event struct {
	Seq     uint64    // given by Log.Add; numbered from 1
	Time    time.Time // when it happened; kept to the millisecond, in UTC
	Kind    string    // stable word, not empty
	Epoch   ids.Epoch // 0: none
	Driver  string
	Node    ids.NodeID // another node that it is about; zero: none
	Name    string     // of Node, for people
	Text    string     // for people
	Seconds float64    // how long it took; 0: not measured
}

// Limits of an event's texts, in bytes. With them a line stays below maxLine:
// JSON makes at most six bytes of one.
const (
	maxWord = 64  // Kind, Driver, Name
	maxText = 400 // Text
	maxLine = 4096
)

// line is the form on disk. Its version stands in it, so that a later one can
// read this one.
type line struct {
	V       int         `json:"v"`
	Seq     uint64      `json:"seq"`
	Time    time.Time   `json:"time"`
	Kind    string      `json:"kind"`
	Epoch   ids.Epoch   `json:"epoch,omitempty"`
	Driver  string      `json:"driver,omitempty"`
	Node    *ids.NodeID `json:"node,omitempty"`
	Name    string      `json:"name,omitempty"`
	Text    string      `json:"text,omitempty"`
	Seconds float64     `json:"seconds,omitempty"`
}

const version = 1

// encode returns the line of an event, with its end.
func encode(e Event) ([]byte, error) {
	l := line{
		V: version, Seq: e.Seq, Time: e.Time.UTC().Truncate(time.Millisecond), Kind: clean(e.Kind, maxWord), Epoch: e.Epoch,
		Driver: clean(e.Driver, maxWord), Name: clean(e.Name, maxWord), Text: clean(e.Text, maxText), Seconds: e.Seconds,
	}
	if l.Kind == "" || l.Seq == 0 {
		return nil, fmt.Errorf("encode event %d: it has no kind or no number", e.Seq)
	}
	if !e.Node.IsZero() {
		l.Node = &e.Node
	}
	raw, err := json.Marshal(l)
	if err != nil {
		return nil, fmt.Errorf("encode event %d: %w", e.Seq, err)
	}
	return append(raw, '\n'), nil
}

// decode reads a line without its end. What a crash left of a line, or
// another program wrote, is not an event.
func decode(raw []byte) (Event, bool) {
	var l line
	if len(raw) > maxLine || json.Unmarshal(raw, &l) != nil || l.V != version || l.Seq == 0 {
		return Event{}, false
	}
	e := Event{
		Seq: l.Seq, Time: l.Time.UTC(), Kind: clean(l.Kind, maxWord), Epoch: l.Epoch, Driver: clean(l.Driver, maxWord),
		Name: clean(l.Name, maxWord), Text: clean(l.Text, maxText), Seconds: l.Seconds,
	}
	if l.Node != nil {
		e.Node = *l.Node
	}
	return e, e.Kind != ""
}

// parse reads the events of a file in their order, and skips what is none.
func parse(data []byte) []Event {
	var out []Event
	for raw := range bytes.Lines(data) {
		if e, ok := decode(bytes.TrimSuffix(raw, []byte("\n"))); ok {
			out = append(out, e)
		}
	}
	return out
}

// clean makes a text valid, printable and short; doing it twice changes
// nothing more.
func clean(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		if r < 0x20 || r == 0x7f || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
	if len(s) <= limit {
		return s
	}
	s = s[:limit]
	for !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s
}
