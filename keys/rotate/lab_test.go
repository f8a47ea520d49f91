package rotate

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// lab is a world with real pauses for the transcripts: a clock that moves in
// ticks, agents that look and act when something is due, a network that
// delivers in the next tick.

const labTick = 100 * time.Millisecond

// labTiming is that of the transcripts.
var labTiming = DefaultTiming()

type lab struct {
	out    strings.Builder
	now    time.Time
	nodes  []*simNode
	wake   []time.Time
	plans  []Plan
	target uint8
	hole   uint8
	key    simKey
	wire   []labPacket // under way
	groups [simNodes]int
	manual bool // messages wait for commands
	quiet  bool // messages are not shown
	lossy  map[string]bool
	loss   int                      // percent of messages and probes
	random func() int               // 0..99
	always bool                     // agents look in each tick
	rx     [simNodes][simNodes]bool // traffic flows
}

type labPacket struct {
	from, to int
	packet
}

func newLab(n int) *lab {
	l := &lab{now: simStart, target: 1, quiet: true, lossy: map[string]bool{}}
	for i := range n {
		l.nodes = append(l.nodes, newSimNode(i, n, labTiming))
	}
	l.wake, l.plans = make([]time.Time, n), make([]Plan, n)
	for i := range n {
		l.wake[i] = l.now
	}
	return l
}

func (l *lab) printf(format string, args ...any) {
	fmt.Fprintf(&l.out, "%8s  %s\n", l.now.Sub(simStart), fmt.Sprintf(format, args...))
}

func name(i int) string { return string(rune('a' + i)) }

func (l *lab) connected(a, b int) bool { return l.groups[a] == l.groups[b] }

// run lets time pass.
func (l *lab) run(d time.Duration, done func() bool) bool {
	for end := l.now.Add(d); l.now.Before(end); l.now = l.now.Add(labTick) {
		l.tick()
		if done() {
			return true
		}
		l.skip(end)
	}
	return false
}

// skip moves the clock to where something happens.
func (l *lab) skip(end time.Time) {
	next := end
	for i := range l.nodes {
		if w := l.wake[i]; !w.IsZero() && w.Before(next) {
			next = w
		}
	}
	if len(l.wire) > 0 && !l.manual {
		return
	}
	if next = next.Add(-labTick); next.After(l.now) {
		l.now = next
	}
}

func (l *lab) tick() {
	if !l.manual {
		wire := l.wire
		l.wire = nil
		for _, p := range wire {
			l.arrive(p)
		}
	}
	for i, n := range l.nodes {
		if w := l.wake[i]; !w.IsZero() && !w.After(l.now) {
			l.loop(n)
		}
	}
	l.check()
}

func (l *lab) lost() bool { return l.loss > 0 && l.random() < l.loss }

// arrive delivers a packet, unless it is lost.
func (l *lab) arrive(p labPacket) {
	if !l.connected(p.from, p.to) || l.lost() {
		return
	}
	if !l.quiet {
		l.printf("%s>%s %s", name(p.from), name(p.to), show(p.packet))
	}
	n := l.nodes[p.to]
	n.m.Receive(l.now, simID(p.from), p.Message)
	l.wake[p.to] = l.now
	if p.answer {
		return
	}
	if a, ok := n.m.Answer(l.now, simID(p.from)); ok {
		l.wire = append(l.wire, labPacket{p.to, p.from, packet{a, true}})
	}
}

// show is a message for people.
func show(p packet) string {
	var b strings.Builder
	fmt.Fprintf(&b, "#%d/%d ack #%d/%d tx %d", p.Boot&0xff, p.Seq, p.AckBoot&0xff, p.AckSeq, p.Tx)
	for _, e := range p.Epochs {
		fmt.Fprintf(&b, ", %d: k%d (%d-%d)", e.Epoch, e.Key, e.Mine, e.Yours)
		if e.Proved {
			b.WriteString(" proved")
		}
	}
	if p.answer {
		b.WriteString(" (answer)")
	}
	return b.String()
}

// loop is a turn of one agent, with what comes of it.
func (l *lab) loop(n *simNode) {
	before := n.simKernel
	for p := range l.nodes {
		if p != n.idx && l.connected(p, n.idx) {
			n.target = max(n.target, l.nodes[p].target) // the signed item spreads
			n.view[p] = l.nodes[p].dev
		}
	}
	plan := n.loop(l.now)
	l.plans[n.idx] = plan
	l.wake[n.idx] = plan.Wake
	l.changes(n, before)
	if n.simKernel != before {
		l.wake[n.idx] = l.now.Add(labTick) // what was done is looked at
		for p := range l.nodes {
			l.soon(p) // the record spreads
		}
	}
	for _, s := range plan.Send {
		l.wire = append(l.wire, labPacket{n.idx, simIndex(s.To), packet{s.Message, false}})
	}
	for _, w := range plan.Agree {
		l.agree(n, w)
	}
	for _, p := range plan.Probe {
		o := l.nodes[simIndex(p.Peer)]
		ok := l.connected(n.idx, o.idx) && !l.lossy["probe"] && !l.lost() && n.echo(o, int(p.Epoch))
		n.m.Probed(l.now, ProbeResult{p, ok, ok && l.hole>>p.Epoch&1 == 0})
		l.soon(n.idx)
	}
}

func (l *lab) soon(i int) {
	if t := l.now.Add(labTick); l.wake[i].IsZero() || l.wake[i].After(t) {
		l.wake[i] = t
	}
}

// agree performs an agreement, or lets it fail.
func (l *lab) agree(n *simNode, w Wanted) {
	o := l.nodes[simIndex(w.Peer)]
	defer l.soon(n.idx)
	if !l.connected(n.idx, o.idx) {
		l.printf("%s>%s asks for epoch %d: unreachable", name(n.idx), name(o.idx), w.Epoch)
		n.failed(l.now, w)
		return
	}
	if err := o.m.MayAgree(simID(n.idx), w.turned(n.idx)); err != nil {
		l.printf("%s>%s asks for epoch %d: %s", name(n.idx), name(o.idx), w.Epoch, l.names(err.Error()))
		n.failed(l.now, w)
		return
	}
	l.key = l.key%255 + 1 // enough for none to come back while it is known
	o.agreed(l.now, w.turned(n.idx), l.key)
	l.soon(o.idx)
	if l.lossy["answer"] {
		l.printf("%s>%s agree on k%d for epoch %d; the answer is lost", name(n.idx), name(o.idx), l.key, w.Epoch)
		n.failed(l.now, w)
		return
	}
	l.printf("%s>%s agree on k%d for epoch %d", name(n.idx), name(o.idx), l.key, w.Epoch)
	n.agreed(l.now, w, l.key)
}

// names puts a, b, c in place of node IDs.
func (l *lab) names(s string) string {
	for i := range simNodes {
		s = strings.ReplaceAll(s, simID(i).String(), name(i))
	}
	return s
}

// changes prints what a turn did to the kernel.
func (l *lab) changes(n *simNode, old simKernel) {
	me := name(n.idx)
	for e := range n.dev {
		switch d, was := n.dev[e], old.dev[e]; {
		case d == was:
		case d.inst == 0:
			l.printf("%s   removes its device of epoch %d", me, e)
		default:
			l.printf("%s   makes device %d of epoch %d", me, d.inst, e)
		}
	}
	for p := range l.nodes {
		for e := range n.has {
			h, was := n.has[e][p], old.has[e][p]
			switch {
			case h.key == 0 && was.key != 0:
				l.printf("%s>%s drops epoch %d", me, name(p), e)
			case h.key != was.key:
				l.printf("%s>%s receives on epoch %d under k%d", me, name(p), e, h.key)
			case h.sends && !was.sends:
				l.printf("%s>%s may send on epoch %d", me, name(p), e)
			}
		}
		if n.route[p] != old.route[p] {
			l.printf("%s>%s ROUTE %d -> %d", me, name(p), old.route[p], n.route[p])
		}
	}
}

// check prints every broken invariant: a transcript must not hold one.
func (l *lab) check() {
	for _, n := range l.nodes {
		for _, o := range l.nodes {
			if n == o {
				continue
			}
			// After hold-down an epoch is given up, whatever comes of it.
			if err := received(n, o); err != nil && !o.m.gaveUp(simID(n.idx), ids.Epoch(n.route[o.idx])) {
				l.printf("BROKEN: %v", err)
			}
			if e := n.route[o.idx]; e != 0 && l.rx[n.idx][o.idx] && n.reaches(o, int(e)) {
				o.has[e][n.idx].rx++
			}
		}
		if d := simDevices(n.dev); len(d) > MaxEpochs {
			l.printf("BROKEN: %s has %d devices", name(n.idx), len(d))
		}
	}
}

// tail is the end of what was printed.
func (l *lab) tail() string {
	lines := strings.Split(l.out.String(), "\n")
	return strings.Join(lines[max(0, len(lines)-40):], "\n")
}

// status prints where each pair stands.
func (l *lab) status() {
	for i, plan := range l.plans {
		devices := make([]ids.Epoch, 0, MaxEpochs)
		for _, d := range simDevices(l.nodes[i].dev) {
			devices = append(devices, d.Epoch)
		}
		fmt.Fprintf(&l.out, "%s devices %v", name(i), devices)
		if plan.Blocked != "" {
			fmt.Fprintf(&l.out, "; %s", l.names(plan.Blocked))
		}
		l.out.WriteByte('\n')
		for _, p := range plan.Progress {
			fmt.Fprintf(&l.out, "%s>%s tx %d goal %d %s", name(i), name(simIndex(p.Peer)), p.Tx, p.Goal, p.Step)
			if !p.FullMTU {
				b := " (small packets only)"
				l.out.WriteString(b)
			}
			if p.Reason != "" {
				fmt.Fprintf(&l.out, ": %s", l.names(p.Reason))
			}
			l.out.WriteByte('\n')
		}
	}
}

// step returns where a pair stands.
func (l *lab) step(a, b int) Step {
	i := slices.IndexFunc(l.plans[a].Progress, func(p Progress) bool { return p.Peer == simID(b) })
	if i < 0 {
		return ""
	}
	return l.plans[a].Progress[i].Step
}
