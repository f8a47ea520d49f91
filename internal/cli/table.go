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
	wrap   int
}

// NewTable returns a table with a header, which stands in capitals.
func NewTable(header ...string) *Table { return &Table{header: header} }

// Wrap makes the last column, a text for people, go on in further lines where
// a line would have more columns.
func (t *Table) Wrap(columns int) { t.wrap = columns }

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
	rows, widths := t.rows, []int(nil)
	if t.wrap > 0 {
		rows, widths = t.wrapped()
	} else {
		widths = t.widths(s.Width)
	}
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
	for _, r := range rows {
		line(r)
	}
	_, err := fmt.Fprint(s.W, b.String())
	return err
}

// minText is the room that a wrapped text has at least.
const minText = 20

// wrapped puts what does not fit into a line into rows of their own. No word
// is cut: it may be part of a command.
func (t *Table) wrapped() (rows [][]Cell, widths []int) {
	widths = t.widths(0)
	last := len(widths) - 1
	room := t.wrap - 2*last
	for _, w := range widths[:last] {
		room -= w
	}
	widths[last] = 0
	for _, r := range t.rows {
		lines := Wrap(r[last].Text, max(room, minText))
		if len(lines) == 0 {
			lines = []string{""}
		}
		for i, text := range lines {
			row := make([]Cell, len(r))
			if i == 0 {
				copy(row, r)
			}
			row[last] = Cell{Text: text, Style: r[last].Style}
			widths[last] = max(widths[last], utf8.RuneCountInString(text))
			rows = append(rows, row)
		}
	}
	widths[last] = max(widths[last], utf8.RuneCountInString(t.header[last]))
	return rows, widths
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
