package agent

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

// TestNextRotation: the interval counts from the target, unless that is from
// the future.
func TestNextRotation(t *testing.T) {
	started := time.Date(2001, 2, 3, 4, 5, 6, 0, time.UTC)
	now := started.Add(time.Minute)
	for _, c := range []struct {
		name    string
		issuer  bool
		every   time.Duration
		created time.Time
		want    time.Time // zero: never
	}{
		{"no issuer key", false, time.Hour, now, time.Time{}},
		{"no interval", true, 0, now, time.Time{}},
		{"no target item", true, time.Hour, time.Time{}, started.Add(time.Hour)},
		{"made before the start", true, time.Hour, started.Add(-30 * time.Minute), started.Add(30 * time.Minute)},
		{"made long ago", true, time.Hour, started.AddDate(-1, 0, 0), started.AddDate(-1, 0, 0).Add(time.Hour)},
		{"made by a clock that is a little ahead", true, time.Hour, now.Add(keys.ClockTolerance), now.Add(keys.ClockTolerance + time.Hour)},
		{"made by a clock that is far ahead", true, time.Hour, now.Add(keys.ClockTolerance + 1), started.Add(time.Hour)},
		{"made a year ahead", true, time.Hour, now.AddDate(1, 0, 0), started.Add(time.Hour)},
	} {
		l := &loop{
			cfg: config.Config{Keys: config.Keys{RotateEvery: c.every}}, canIssue: c.issuer, started: started,
			now: func() time.Time { return now }, target: item.Target{Epoch: 2, Created: c.created},
		}
		if at, ok := l.nextRotation(); ok == c.want.IsZero() || !at.Equal(c.want) {
			t.Errorf("%s: %s, %t, want %s", c.name, at, ok, c.want)
		}
		if c.want.IsZero() {
			continue
		}
		// Other issuers ask up to a tenth of the interval later.
		l.identity = keystore.Identity{ID: ids.NodeID{0xff}}
		if at, _ := l.nextRotation(); !at.After(c.want) || at.After(c.want.Add(c.every/10)) {
			t.Errorf("%s: the last issuer asks at %s, the first at %s", c.name, at, c.want)
		}
	}
}

// TestRotationAfterFutureTarget: a target that was signed by a clock a year
// ahead does not stop the schedule for a year.
func TestRotationAfterFutureTarget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()), w.machine(2, blue()).start()
		a.issuer = true
		a.cfg.Keys.RotateEvery = 2 * time.Minute
		a.start()
		w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
		w.board.aim(2, config.DriverAuto)
		w.board.set(func() { w.board.target.Created = time.Now().AddDate(1, 0, 0) })
		w.until("epoch 2", func() bool { return a.on(2, 1) && b.on(2, 1) })
		<-time.After(3 * time.Minute)
		if !a.on(3, 1) || !b.on(3, 1) || a.keys().Target.Reason != item.ReasonScheduled.String() {
			t.Errorf("an interval later: target %+v, next in %s", a.keys().Target, time.Until(a.keys().NextRotation))
		}
	})
}
