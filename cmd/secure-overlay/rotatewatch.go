package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
)

// rotationWatch shows the phases of a rotation and decides when to stop. It
// gets the time as an argument.
type rotationWatch struct {
	app     *app
	list    *cli.Checklist
	opts    waitOptions
	last    api.Progress
	moved   time.Time // when last changed
	shown   int       // phases that have ended
	entered time.Time // when the present phase began
	named   map[string]bool
}

func newRotationWatch(a *app, o waitOptions, now time.Time) *rotationWatch {
	return &rotationWatch{app: a, list: cli.NewChecklist(a.err), opts: o, moved: now, entered: now, named: map[string]bool{}}
}

// phase is one line of the checklist.
type phase struct {
	name, unit string
	count      api.Count
	of         api.Phase
}

func phases(p api.Progress) []phase {
	return []phase{
		{"prepared", "nodes", p.Prepared, api.PhasePrepare},
		{"proved", "pairs of this node", p.Proved, api.PhaseProve},
		{"switched", "pairs of this node", p.Switched, api.PhaseSwitch},
		{"finished", "nodes", p.Finished, api.PhaseFinish},
	}
}

// see takes the newest progress, shows it, and returns the outcome; empty:
// wait on.
func (w *rotationWatch) see(p api.Progress, now time.Time) string {
	if !sameCounts(p, w.last) {
		w.moved = now
	}
	w.last = p
	all := phases(p)
	for w.shown < len(all) && all[w.shown].count.OK == all[w.shown].count.Total {
		w.list.Step(cli.Done, all[w.shown].name, all[w.shown].text())
		w.shown++
		w.entered = now
	}
	switch {
	case p.Done():
		return waitDone
	case p.Stuck() && now.Sub(w.moved) >= w.opts.settle:
		w.end(cli.Warning)
		return waitPartial
	}
	if w.shown < len(all) {
		w.show(all[:w.shown+1], now)
	}
	return ""
}

func sameCounts(a, b api.Progress) bool {
	return a.Prepared == b.Prepared && a.Proved == b.Proved && a.Switched == b.Switched && a.Finished == b.Finished
}

func (p phase) text() string {
	return fmt.Sprintf("[%d/%d] %s", p.count.OK, p.count.Total, p.unit)
}

// show moves the line of the last phase of the list, the present one, and
// after a while says who is missing.
func (w *rotationWatch) show(begun []phase, now time.Time) {
	cur := begun[len(begun)-1]
	detail := cur.text()
	if now.Sub(w.entered) >= w.opts.patience {
		if holders := w.holders(begun); len(holders) > 0 {
			detail += "; waiting for " + strings.Join(holders, "; ")
			w.name(holders)
		}
	}
	w.list.Step(cli.Running, cur.name, detail)
}

// maxHolders is how many of those who hold a phase up are named.
const maxHolders = 5

// holders are who keeps a phase from ending, with their reasons.
func (w *rotationWatch) holders(begun []phase) []string {
	var out []string
	for _, h := range w.last.Waiting {
		if !slices.ContainsFunc(begun, func(p phase) bool { return p.of == h.Phase }) {
			continue
		}
		if len(out) == maxHolders {
			return append(out, "and others")
		}
		out = append(out, node(h.NodeRef)+": "+h.Reason)
	}
	return out
}

// name says each holder once where no line can be rewritten.
func (w *rotationWatch) name(holders []string) {
	if w.app.err.Terminal {
		return
	}
	for _, h := range holders {
		if !w.named[h] {
			w.named[h] = true
			w.app.say("      waiting for %s", cli.Clean(h))
		}
	}
}

// end shows the phases that did not end.
func (w *rotationWatch) end(mark cli.Mark) {
	for all := phases(w.last); w.shown < len(all); w.shown++ {
		w.list.Step(mark, all[w.shown].name, all[w.shown].text())
	}
}
