package cli

import (
	"fmt"
	"strings"
	"sync"
)

// Mark is the state of a line in a checklist.
type Mark int

// The marks.
const (
	Running Mark = iota
	Done
	Warning
	Failed
)

// Checklist prints the stages of long work, one line each: on a terminal a
// line is rewritten when its stage ends, elsewhere each state is a line of its
// own and running stages are not shown. It may be used by several goroutines.
type Checklist struct {
	screen Screen
	mu     sync.Mutex
	open   bool // the cursor stands behind an unfinished line
	frame  int  // of the moving dots
}

// NewChecklist returns an empty list on a screen.
func NewChecklist(s Screen) *Checklist { return &Checklist{screen: s} }

// dots are the frames of a running stage: whoever repeats its Step sees them
// move.
var dots = [...]string{".   ", "..  ", "... ", "...."}

// nameWidth is the column of the details.
const nameWidth = 18

// Step shows a stage in a state. detail says what was found, or what is done
// about it.
func (c *Checklist) Step(m Mark, name, detail string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m == Running && !c.screen.Terminal {
		return
	}
	word, style := dots[c.frame%len(dots)], Dim
	switch m {
	case Running:
		c.frame++
	case Done:
		word, style = "ok  ", Good
	case Warning:
		word, style = "warn", Warn
	case Failed:
		word, style = "fail", Bad
	}
	line := fmt.Sprintf("%s  %-*s", c.screen.Paint(style, word), nameWidth, Clean(name))
	if detail != "" {
		line += "  " + c.fit(Clean(detail), m)
	}
	line = strings.TrimRight(line, " ")
	if c.open {
		_, _ = fmt.Fprint(c.screen.W, "\r\x1b[K")
	}
	c.open = m == Running
	if !c.open {
		line += "\n"
	}
	_, _ = fmt.Fprint(c.screen.W, line)
}

// fit keeps a line that will be rewritten on one row of the terminal.
func (c *Checklist) fit(detail string, m Mark) string {
	if m != Running || c.screen.Width == 0 {
		return detail
	}
	return cut(detail, max(minColumn, c.screen.Width-nameWidth-9))
}

// Break ends an unfinished line, so that other output can follow.
func (c *Checklist) Break() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open {
		_, _ = fmt.Fprintln(c.screen.W)
		c.open = false
	}
}
