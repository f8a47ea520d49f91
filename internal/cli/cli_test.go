package cli

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestTable(t *testing.T) {
	tab := NewTable("network", "vni", "driver")
	tab.Row("blue", 4097, Cell{Text: "wireguard (kernel)", Style: Good})
	tab.Row("evil\x1b[2J", 1, "")
	var b strings.Builder
	if err := tab.Print(Screen{W: &b}); err != nil {
		t.Fatal(err)
	}
	want := "NETWORK   VNI   DRIVER\nblue      4097  wireguard (kernel)\nevil\ufffd[2J  1     -\n"
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Error(d)
	}
	b.Reset()
	if err := tab.Print(Screen{W: &b, Colour: true, Width: 26}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "\x1b[32mwireg") || !strings.Contains(b.String(), "…") {
		t.Errorf("narrow and coloured: %q", b.String())
	}
}

func TestTableWrap(t *testing.T) {
	tab := NewTable("when", "text")
	tab.Row("1m", "one two three four five six")
	tab.Row("2m", "--a-word-that-is-longer-than-the-room")
	tab.Row("3m", " ")
	tab.Wrap(26)
	var b strings.Builder
	if err := tab.Print(Screen{W: &b, Width: 10}); err != nil {
		t.Fatal(err)
	}
	want := "WHEN  TEXT\n1m    one two three four\n      five six\n2m    --a-word-that-is-longer-than-the-room\n3m\n"
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Error(d)
	}
}

func TestFormats(t *testing.T) {
	type item struct {
		Name string `json:"name"`
		N    int    `json:"n"`
	}
	v := struct {
		Schema int    `json:"schema"`
		Items  []item `json:"items"`
		Empty  []item `json:"empty"`
		Text   string `json:"text"`
	}{1, []item{{"b", 2}, {"a", 1}}, []item{}, "true"}
	for f, want := range map[Format]string{
		FormatYAML:  "schema: 1\nitems:\n  - name: b\n    n: 2\n  - name: a\n    n: 1\nempty: []\ntext: \"true\"\n",
		FormatJSONL: "{\"schema\":1,\"name\":\"b\",\"n\":2}\n{\"schema\":1,\"name\":\"a\",\"n\":1}\n",
		FormatJSON:  "{\n  \"schema\": 1,\n  \"items\": [\n    {\n      \"name\": \"b\",\n      \"n\": 2\n    },\n    {\n      \"name\": \"a\",\n      \"n\": 1\n    }\n  ],\n  \"empty\": [],\n  \"text\": \"true\"\n}\n",
	} {
		var b strings.Builder
		if err := f.Write(&b, 1, v, []any{v.Items[0], v.Items[1]}); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(want, b.String()); d != "" {
			t.Errorf("%s: %s", f, d)
		}
	}
	var f Format
	if f.Set("xml") == nil || f.Set("yaml") != nil || f != FormatYAML {
		t.Errorf("Set: %q", f)
	}
}

func TestWords(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0s", 38 * time.Second: "38s", 72 * time.Second: "1m12s", 12*time.Minute + 5*time.Second: "12m",
		3*time.Hour + 5*time.Minute: "3h5m", 76 * time.Hour: "3d4h", 48 * time.Hour: "2d", -time.Minute: "-1m",
	} {
		if got := Span(d); got != want {
			t.Errorf("Span(%v) = %q, want %q", d, got, want)
		}
	}
	for n, want := range map[uint64]string{0: "0", 999: "999", 1000: "1.0k", 9_960: "10k", 4_400_000: "4.4M", 830_000_000: "830M", 999_600_000: "1.0G", 1 << 63: "9.2E"} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %q, want %q", n, got, want)
		}
	}
	now := time.Unix(1000, 0)
	if Ago(time.Time{}, now) != "never" || Ago(time.Unix(990, 0), now) != "10s" || Ago(time.Unix(1010, 0), now) != "0s" {
		t.Error("Ago")
	}
}

func TestChecklist(t *testing.T) {
	var b strings.Builder
	c := NewChecklist(Screen{W: &b})
	c.Step(Running, "driver", "probing")
	c.Step(Done, "driver", "wireguard (userspace)")
	c.Step(Failed, "ports", "51871 is in use\x1b[2J")
	c.Break()
	want := "ok    driver              wireguard (userspace)\nfail  ports               51871 is in use\ufffd[2J\n"
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Error(d)
	}
	b.Reset()
	c = NewChecklist(Screen{W: &b, Terminal: true, Width: 40})
	c.Step(Running, "driver", "probing")
	c.Step(Done, "driver", "found")
	c.Step(Running, "next", "")
	c.Break()
	want = ".     driver              probing\r\x1b[Kok    driver              found\n..    next\n"
	if d := cmp.Diff(want, b.String()); d != "" {
		t.Error(d)
	}
}
