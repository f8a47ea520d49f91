package cli

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Cell is one field of a table.
type Cell struct {
	Text  string
	Style Style
}

// Table is rows under a header. Columns are as wide as their widest cell and
// two spaces apart; the last one is not padded.
type Table struct {
	header []string
	rows   [][]Cell
}

// NewTable returns a table with a header, which stands in capitals.
func NewTable(header ...string) *Table { return &Table{header: header} }

// Row adds a row. A value may be a string, a Cell, or anything fmt prints.
func (t *Table) Row(values ...any) {
	row := make([]Cell, len(values))
	for i, v := range values {
		switch v := v.(type) {
		case Cell:
			row[i] = v
		case string:
			row[i] = Cell{Text: v}
		default:
			row[i] = Cell{Text: fmt.Sprint(v)}
		}
		if row[i].Text = Clean(row[i].Text); row[i].Text == "" {
			row[i].Text = "-"
		}
	}
	t.rows = append(t.rows, row)
}

// Print writes the table. On a terminal that is too narrow, the widest
// columns are cut, with a sign that they were.
func (t *Table) Print(s Screen) error {
	widths := t.widths(s.Width)
	var b strings.Builder
	line := func(cells []Cell) {
		var parts strings.Builder
		for i, c := range cells {
			text := cut(c.Text, widths[i])
			parts.WriteString(s.Paint(c.Style, text))
			if i < len(cells)-1 {
				parts.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text)+2))
			}
		}
		b.WriteString(strings.TrimRight(parts.String(), " ") + "\n")
	}
	head := make([]Cell, len(t.header))
	for i, h := range t.header {
		head[i] = Cell{Text: strings.ToUpper(h), Style: Dim}
	}
	line(head)
	for _, r := range t.rows {
		line(r)
	}
	_, err := fmt.Fprint(s.W, b.String())
	return err
}

// minColumn is the width below which a column is not cut.
const minColumn = 8

func (t *Table) widths(limit int) []int {
	w := make([]int, len(t.header))
	for i, h := range t.header {
		w[i] = utf8.RuneCountInString(h)
	}
	for _, r := range t.rows {
		for i, c := range r {
			w[i] = max(w[i], utf8.RuneCountInString(c.Text))
		}
	}
	total := 2 * (len(w) - 1)
	for _, n := range w {
		total += n
	}
	for limit > 0 && total > limit {
		widest := 0
		for i, n := range w {
			if n > w[widest] {
				widest = i
			}
		}
		if w[widest] <= minColumn {
			break // a narrower table would say nothing
		}
		w[widest]--
		total--
	}
	return w
}

func cut(s string, width int) string {
	if utf8.RuneCountInString(s) <= width {
		return s
	}
	return string([]rune(s)[:width-1]) + "…"
}
