package cli

import (
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// Span says a duration in at most two units: 38s, 12m, 3h5m, 3d4h.
func Span(d time.Duration) string {
	d = d.Round(time.Second)
	day := 24 * time.Hour
	two := func(big, small time.Duration, b, s string) string {
		if rest := d % big / small; rest > 0 {
			return fmt.Sprintf("%d%s%d%s", d/big, b, rest, s)
		}
		return fmt.Sprintf("%d%s", d/big, b)
	}
	switch {
	case d < 0:
		return "-" + Span(-d)
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < 10*time.Minute:
		return two(time.Minute, time.Second, "m", "s")
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	case d < day:
		return two(time.Hour, time.Minute, "h", "m")
	default:
		return two(day, time.Hour, "d", "h")
	}
}

// Ago says how long before now t was; "never" for the zero time.
func Ago(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return Span(max(0, now.Sub(t)))
}

// Size says a number of bytes in powers of ten: 830, 4.4M, 1.2G.
func Size(n uint64) string {
	if n < 1000 {
		return fmt.Sprint(n)
	}
	f := float64(n)
	for _, unit := range []string{"k", "M", "G", "T", "P", "E"} {
		f /= 1000
		if f < 9.95 {
			return fmt.Sprintf("%.1f%s", f, unit)
		}
		if f < 999.5 {
			return fmt.Sprintf("%.0f%s", f, unit)
		}
	}
	return fmt.Sprint(n)
}

// Plural says a number with its noun: 1 peer, 2 peers.
func Plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// Wrap breaks a text at spaces into lines of at most width columns. A longer
// word gets a line of its own: a command must stay whole to be copied.
func Wrap(s string, width int) []string {
	var lines []string
	for _, word := range strings.Fields(s) {
		last := len(lines) - 1
		if last >= 0 && utf8.RuneCountInString(lines[last])+1+utf8.RuneCountInString(word) <= width {
			lines[last] += " " + word
			continue
		}
		lines = append(lines, word)
	}
	return lines
}
