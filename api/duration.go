package api

import (
	"fmt"
	"time"
)

// Duration is a time.Duration whose JSON form is Go's text form ("1h30m").
type Duration time.Duration

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(b []byte) error {
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return fmt.Errorf("parse duration %q: want a form such as 15m or 2h", b)
	}
	*d = Duration(v)
	return nil
}
