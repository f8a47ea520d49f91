package events

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

func example(seq uint64) Event {
	return Event{
		Seq: seq, Time: time.UnixMilli(1_700_000_000_123).UTC(), Kind: "switched", Epoch: 43, Driver: "wireguard",
		Node: ids.NodeIDOf([32]byte{1}), Name: "web-1", Text: `on "43"`, Seconds: 0.25,
	}
}

func TestLine(t *testing.T) {
	raw, err := encode(example(7))
	if err != nil {
		t.Fatal(err)
	}
	want := `{"v":1,"seq":7,"time":"2023-11-14T22:13:20.123Z","kind":"switched","epoch":43,"driver":"wireguard",` +
		`"node":"` + ids.NodeIDOf([32]byte{1}).String() + `","name":"web-1","text":"on \"43\"","seconds":0.25}` + "\n"
	if d := cmp.Diff(want, string(raw)); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]Event{example(7)}, parse(raw)); d != "" {
		t.Error(d)
	}
	// The least that an event can say.
	raw, err = encode(Event{Seq: 1, Kind: "x"})
	if d := cmp.Diff(`{"v":1,"seq":1,"time":"0001-01-01T00:00:00Z","kind":"x"}`+"\n", string(raw)); d != "" || err != nil {
		t.Error(d, err)
	}
}

func TestNoLine(t *testing.T) {
	for name, e := range map[string]Event{
		"no kind": {Seq: 1}, "no number": {Kind: "x"}, "not a number": {Seq: 1, Kind: "x", Seconds: math.NaN()},
		"far future": {Seq: 1, Kind: "x", Time: time.Date(10000, 1, 1, 0, 0, 0, 0, time.UTC)},
	} {
		if raw, err := encode(e); err == nil {
			t.Errorf("%s: %s", name, raw)
		}
	}
	for _, s := range []string{
		"", "{}", "[]", "null", "x", `{"v":2,"seq":1,"kind":"x"}`, `{"v":1,"seq":0,"kind":"x"}`, `{"v":1,"seq":-1,"kind":"x"}`, `{"v":1,"seq":1}`,
		`{"v":1,"seq":1,"kind":"x","time":"yesterday"}`, `{"v":1,"seq":1,"kind":"x","node":"short"}`, `{"v":1,"seq":1,"kind":"x"`, `{"v":1,"seq":1,"kind":"x"} {}`,
		`{"v":1,"seq":1,"kind":"` + strings.Repeat("x", maxLine) + `"}`,
	} {
		if e, ok := decode([]byte(s)); ok {
			t.Errorf("%q is an event: %+v", s, e)
		}
	}
}

// Whatever the texts are, a line is a line, and below the limit.
func TestTexts(t *testing.T) {
	for _, s := range []string{strings.Repeat("<", 1000), strings.Repeat("ä", 1000), "a\nb\x1b[2J\xff\u2028", strings.Repeat("\x00", 500), strings.Repeat("\xe2\x80", 300)} {
		e := example(math.MaxUint64)
		e.Kind, e.Driver, e.Name, e.Text, e.Epoch, e.Seconds = s, s, s, s, math.MaxUint32, -math.MaxFloat64
		raw, err := encode(e)
		if err != nil || len(raw) > maxLine || bytes.IndexByte(raw, '\n') != len(raw)-1 {
			t.Fatalf("%.20q: %d bytes, %v", s, len(raw), err)
		}
		got := parse(raw)
		if len(got) != 1 || strings.ContainsAny(got[0].Text, "\x00\x1b\n\ufffd") || len(got[0].Text) > maxText {
			t.Fatalf("%.20q: read back %+v", s, got)
		}
		if again, err := encode(got[0]); err != nil || !bytes.Equal(again, raw) {
			t.Errorf("%.20q: encoded again: %v\n%s%s", s, err, raw, again)
		}
	}
}

func FuzzParse(f *testing.F) {
	raw, err := encode(example(7))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(append(raw[:40:40], raw...))
	f.Add([]byte("{}\n\n\x00{\"v\":1,\"seq\":1,\"kind\":\"\\u0000\"}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, e := range parse(data) {
			raw, err := encode(e)
			if err != nil {
				continue // a year that the encoder refuses
			}
			got := parse(raw)
			e.Time = e.Time.Truncate(time.Millisecond)
			if d := cmp.Diff([]Event{e}, got); d != "" {
				t.Fatal(d)
			}
		}
	})
}
