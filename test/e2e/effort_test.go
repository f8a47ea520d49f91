package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/test/fleet"
)

// effort is the processors' time at one moment, since the machine or a process
// began. It tells a machine that cannot carry the load from a product that loses
// something; it is for people.
type effort struct {
	user, system, interrupts, all float64 // of the machine, in ticks (proc_stat(5))
	test                          time.Duration
	agents                        map[int]float64 // by process, in ticks
}

// ticks is USER_HZ, which is 100 on every architecture that Go runs on.
const ticks = 100

func effortNow(f *fleet.Fleet) effort {
	e := effort{agents: map[int]float64{}}
	raw, _ := os.ReadFile("/proc/stat")
	first, _, _ := strings.Cut(string(raw), "\n")
	for i, v := range numbersOf(first) {
		switch i {
		case 1, 2: // user, nice; guests' time is in it
			e.user += v
		case 3:
			e.system += v
		case 6, 7:
			e.interrupts += v
		}
		if i <= 8 {
			e.all += v
		}
	}
	var self unix.Rusage
	if unix.Getrusage(unix.RUSAGE_SELF, &self) == nil {
		e.test = time.Duration(self.Utime.Nano() + self.Stime.Nano())
	}
	for _, n := range f.Nodes {
		if !n.Running() {
			continue
		}
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", n.PID()))
		if _, rest, ok := strings.Cut(string(raw), ") "); err == nil && ok {
			if v := numbersOf(rest); len(v) > 12 {
				e.agents[n.PID()] = v[11] + v[12] // utime, stime (proc_pid_stat(5))
			}
		}
	}
	return e
}

// numbersOf splits a line into numbers; what is none is 0.
func numbersOf(line string) []float64 {
	var out []float64
	for _, f := range strings.Fields(line) {
		v, _ := strconv.ParseFloat(f, 64)
		out = append(out, v)
	}
	return out
}

// since says what e cost after before. Agents that began or ended meanwhile do
// not count.
func (e effort) since(before effort) string {
	percent := func(now, then float64) float64 { return 100 * (now - then) / max(1, e.all-before.all) }
	agents := 0.0
	for pid, now := range e.agents {
		if then, ok := before.agents[pid]; ok {
			agents += now - then
		}
	}
	u, s, i := percent(e.user, before.user), percent(e.system, before.system), percent(e.interrupts, before.interrupts)
	return fmt.Sprintf("%.0f %% busy (%.0f in programs, %.0f in the kernel, %.0f in its interrupts); agents %.1f s, this test %.1f s",
		u+s+i, u, s, i, agents/ticks, (e.test - before.test).Seconds())
}
