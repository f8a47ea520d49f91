package main

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
)

// show prints data in the format that was asked for: table is called for
// people, v and items go to programs.
func (a *app) show(f cli.Format, v any, items []any, table func() error) error {
	if f == cli.FormatTable {
		return table()
	}
	return f.Write(a.out.W, api.Schema, v, items)
}

// anys is a list as Format.Write wants it; never nil.
func anys[T any](list []T) []any {
	out := make([]any, len(list))
	for i, v := range list {
		out[i] = v
	}
	return out
}

// say prints a line for people to stderr. If that fails there is nobody to tell.
func (a *app) say(format string, args ...any) { _, _ = fmt.Fprintf(a.err.W, format+"\n", args...) }

// print prints a line of data to stdout. That it could not be written is
// reported when the command ends.
func (a *app) print(format string, args ...any) {
	if _, err := fmt.Fprintf(a.out.W, format+"\n", args...); err != nil && a.outErr == nil {
		a.outErr = fmt.Errorf("write output: %w", err)
	}
}

// labelWidth is the room for what stands before a wrapped text.
const labelWidth = 9

// wrap prints a text of any length behind a label, in lines of at most 80
// columns. The label is printed as it is, the text cleaned.
func (a *app) wrap(label, text string) {
	for i, line := range cli.Wrap(cli.Clean(text), 80-labelWidth) {
		if i > 0 {
			label = strings.Repeat(" ", labelWidth)
		}
		a.print("%s%s", label, line)
	}
}

// node is how a node stands in a table: its name, or its short ID.
func node(r api.NodeRef) string {
	if r.Name != "" {
		return r.Name
	}
	return r.ID.Short()
}

// stateCell colours a state.
func stateCell(s api.State) cli.Cell { return cli.Cell{Text: string(s), Style: stateStyle(s)} }

func stateStyle(s api.State) cli.Style {
	switch s {
	case api.StateOK:
		return cli.Good
	case api.StateFailed:
		return cli.Bad
	default:
		return cli.Warn
	}
}

// encryptionCell says what carries a network; plaintext is always loud.
func encryptionCell(n api.Network) cli.Cell {
	if !n.Encrypted {
		text := "PLAINTEXT"
		if n.Change != nil {
			text += fmt.Sprintf(" -> %s %s", formWord(n.Change.Encrypted), countText(n.Change.Nodes))
		}
		return cli.Cell{Text: text, Style: cli.Bad}
	}
	if n.Driver == "" {
		return cli.Cell{Text: "no tunnel yet", Style: cli.Warn}
	}
	return cli.Cell{Text: n.Driver, Style: cli.Good}
}

// firstOf shows the first of a list and how many more there are, so that a
// table keeps its width.
func firstOf[T fmt.Stringer](list []T) string {
	switch len(list) {
	case 0:
		return "-"
	case 1:
		return list[0].String()
	default:
		return fmt.Sprintf("%s +%d", list[0], len(list)-1)
	}
}

func countText(c api.Count) string { return fmt.Sprintf("%d/%d", c.OK, c.Total) }

func addr(a netip.AddrPort) string {
	if !a.IsValid() {
		return "-"
	}
	return a.String()
}

func join[T fmt.Stringer](list []T) string {
	parts := make([]string, len(list))
	for i, v := range list {
		parts[i] = v.String()
	}
	return strings.Join(parts, ", ")
}

// problems prints what is wrong, or worth knowing, and how to fix it, below a
// table. label has seven letters.
func (a *app) problems(label string, list []api.Problem) {
	for _, p := range list {
		subject := ""
		if p.Subject != "" {
			subject = p.Subject + ": "
		}
		a.wrap(a.out.Paint(cli.Warn, label)+"  ", subject+p.Message)
		if p.Fix != "" {
			a.wrap("    fix  ", p.Fix)
		}
	}
}
