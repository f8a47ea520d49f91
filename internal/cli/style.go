package cli

import (
	"io"
	"os"
	"strings"
	"unicode"

	"golang.org/x/term"
)

// Style is the meaning of a piece of text, shown as a colour on terminals.
type Style int

// The styles.
const (
	Plain Style = iota
	Good
	Warn
	Bad
	Dim
	Bold
)

// Screen is an output with what is known about it.
type Screen struct {
	W        io.Writer
	Terminal bool // cursor movement is possible
	Colour   bool
	Width    int // columns; 0: unknown, nothing is cut
}

// NewScreen looks at w: only a terminal gets colour, and not if env has
// NO_COLOR (any value, no-color.org) or TERM=dumb.
func NewScreen(w io.Writer, env []string) Screen {
	s := Screen{W: w}
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return s
	}
	s.Terminal, s.Colour = true, true
	if width, _, err := term.GetSize(int(f.Fd())); err == nil {
		s.Width = width
	}
	for _, kv := range env {
		name, val, _ := strings.Cut(kv, "=")
		switch {
		case name == "NO_COLOR" && val != "":
			s.Colour = false
		case name == "TERM" && val == "dumb":
			s.Terminal, s.Colour = false, false
		}
	}
	return s
}

// Paint returns text in a style.
func (s Screen) Paint(style Style, text string) string {
	code := ""
	switch style {
	case Good:
		code = "32"
	case Warn:
		code = "33"
	case Bad:
		code = "31"
	case Dim:
		code = "2"
	case Bold:
		code = "1"
	}
	if !s.Colour || code == "" || text == "" {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}

// Clean replaces control characters and other unprintable ones: a node's name
// or an error text comes from another machine and must not move the cursor.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\t' {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return '\ufffd'
		}
		return r
	}, s)
}

// IsTerminal reports whether f is a terminal.
func IsTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }
