package agent

import (
	"reflect"
	"time"
)

// made is what a part of the kernel was made to be last, without an error. Most
// turns of a rotation change nothing of most parts; looking at everything in each
// of them would cost more than all else that a rotation does. What somebody else
// breaks is found by the first turn after a resync.
type made[T any] struct {
	spec T
	at   time.Time // zero: never, or it is not known to be so any more
}

// recent reports whether it was made within the last resync.
func (m *made[T]) recent(now time.Time) bool { return now.Before(m.at.Add(resync)) }

// still reports whether making it want would do what was done just now.
func (m *made[T]) still(now time.Time, want T) bool {
	return m.recent(now) && reflect.DeepEqual(m.spec, want)
}

func (m *made[T]) note(now time.Time, spec T) { *m = made[T]{spec: spec, at: now} }

func (m *made[T]) forget() { *m = made[T]{} }
