package rotate

import (
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// chaos lets things happen to a lab at random, with real pauses: the
// exploration has none, and this has no limit on how often.
func chaos(t *rapid.T, l *lab, steps int) {
	node := rapid.IntRange(0, len(l.nodes)-1)
	for range rapid.IntRange(1, steps).Draw(t, "steps") {
		n := l.nodes[node.Draw(t, "node")]
		p := node.Draw(t, "peer")
		e := rapid.IntRange(1, int(l.target)).Draw(t, "epoch")
		switch rapid.IntRange(0, 9).Draw(t, "what") {
		case 0:
			if l.target < simEpochs {
				l.target++
			}
			n.target = l.target
		case 1:
			n.restart(labTiming)
			n.partial = true
		case 2:
			n.partial = false
		case 3:
			n.reboot(labTiming)
		case 4:
			n.loseDevice(e)
		case 5:
			n.loseHold(e, p)
		case 6:
			l.groups[n.idx] = rapid.IntRange(0, 1).Draw(t, "group")
		case 7:
			l.lossy["answer"] = !l.lossy["answer"]
		case 8:
			l.loss = rapid.IntRange(0, 60).Draw(t, "loss")
		case 9:
			n.rejects = !n.rejects
		}
		l.wakeAll()
		d := rapid.SampledFrom([]time.Duration{labTick, 300 * time.Millisecond, time.Second, 5 * time.Second, time.Minute, 10 * time.Minute}).Draw(t, "time")
		l.run(d, func() bool { return false })
	}
}

// calm ends all trouble.
func (l *lab) calm() {
	l.groups, l.loss = [simNodes]int{}, 0
	l.lossy["answer"] = false
	for _, n := range l.nodes {
		n.partial, n.rejects = false, false
	}
	l.wakeAll()
}

func (l *lab) wakeAll() {
	for i := range l.nodes {
		l.wake[i] = l.now
	}
}

// arrived returns an error unless all pairs are on the target and nothing
// older is left.
func (l *lab) arrived() error {
	for _, n := range l.nodes {
		for _, o := range l.nodes {
			if n != o && (n.route[o.idx] != l.target || !n.reaches(o, int(l.target))) {
				return fmt.Errorf("%s sends to %s on epoch %d, the target is %d", name(n.idx), name(o.idx), n.route[o.idx], l.target)
			}
		}
		if ds := simDevices(n.dev); len(ds) != 1 {
			return fmt.Errorf("%s has devices %v", name(n.idx), ds)
		}
	}
	return nil
}

// TestChaos: whatever happens, no invariant breaks, and when the trouble is
// over all pairs arrive within minutes, and then nobody says a word.
func TestChaos(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLab(rapid.IntRange(3, 4).Draw(t, "nodes")) // four can be full of epochs for each other
		l.random = func() int { return rapid.IntRange(0, 99).Draw(t, "luck") }
		l.run(rapid.SampledFrom([]time.Duration{0, time.Minute}).Draw(t, "begin"), func() bool { return false })
		chaos(t, l, 12)
		l.calm()
		if !l.run(15*time.Minute, func() bool { return l.arrived() == nil }) {
			l.status()
			t.Fatalf("%v\n%s", l.arrived(), l.tail())
		}
		l.run(2*time.Minute, func() bool { return false })
		if strings.Contains(l.out.String(), "BROKEN") {
			t.Fatal(l.tail())
		}
		l.out.Reset()
		l.quiet = false
		l.run(time.Hour, func() bool { return false })
		if l.out.Len() > 0 {
			t.Fatalf("after all is done:\n%s", l.tail())
		}
	})
}

// TestWake: until the time at which a plan wants to be asked again, nothing
// becomes due; a plan that names no time waits for ever.
func TestWake(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLab(3)
		l.random = func() int { return rapid.IntRange(0, 99).Draw(t, "luck") }
		chaos(t, l, 8)
		for _, n := range l.nodes {
			n.m.Observe(l.now, n.observation())
			n.apply(n.m.Poll(l.now))
			n.m.Observe(l.now, n.observation())
			first := n.m.Poll(l.now)
			at := l.now.Add(10 * simYear)
			if !first.Wake.IsZero() {
				if at = first.Wake.Add(-1); !at.After(l.now) {
					continue
				}
			}
			c := n.copy()
			c.m.Observe(at, c.observation())
			later := c.m.Poll(at)
			if len(later.Agree)+len(later.Probe)+len(later.Send) != 0 ||
				!reflect.DeepEqual(first.Devices, later.Devices) || !reflect.DeepEqual(first.Pairs, later.Pairs) {
				t.Fatalf("%s at %v, wake %v:\n%+v\nat %v:\n%+v", name(n.idx), l.now, first.Wake, first, at, later)
			}
		}
	})
}

// TestPollIsStable: polling again without anything new changes nothing, and
// lists nothing twice.
func TestPollIsStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLab(3)
		l.random = func() int { return rapid.IntRange(0, 99).Draw(t, "luck") }
		chaos(t, l, 8)
		for _, n := range l.nodes {
			n.m.Observe(l.now, n.observation())
			a, b := n.m.Poll(l.now), n.m.Poll(l.now)
			if len(b.Agree)+len(b.Probe)+len(b.Send) != 0 {
				t.Fatalf("again: %v %v %v", b.Agree, b.Probe, b.Send)
			}
			if !reflect.DeepEqual(a.Devices, b.Devices) || !reflect.DeepEqual(a.Pairs, b.Pairs) {
				t.Fatalf("first\n%+v\nthen\n%+v", a, b)
			}
			for _, p := range a.Pairs {
				if p.Epoch == 0 || p.Key == 0 || p.Main && p.Probe || p.Main && !p.Send {
					t.Fatalf("senseless pair %+v", p)
				}
			}
		}
	})
}

// TestPlansAgree: the epochs of pairs are among the devices wanted, as long as
// the observation is complete.
func TestPlansAgree(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := newLab(3)
		l.random = func() int { return rapid.IntRange(0, 99).Draw(t, "luck") }
		chaos(t, l, 8)
		for i, plan := range l.plans {
			wanted := map[ids.Epoch]bool{}
			for _, e := range plan.Devices {
				wanted[e] = true
			}
			if len(wanted) > MaxEpochs {
				t.Fatalf("%s wants devices %v", name(i), plan.Devices)
			}
			for _, p := range plan.Pairs {
				if !wanted[p.Epoch] {
					t.Fatalf("%s wants %+v and devices %v", name(i), p, plan.Devices)
				}
			}
		}
	})
}
