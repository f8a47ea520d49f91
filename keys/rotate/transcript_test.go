package rotate

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write what happens to the transcripts in testdata")

// TestTranscripts plays testdata/*.txt. A transcript consists of blocks: a
// command, a line "----", and what it prints. Lines with # at the front and
// blank lines between blocks are kept. The commands are documented in
// command.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) < 2 {
		t.Fatalf("%d transcripts, %v", len(files), err)
	}
	for _, f := range files {
		t.Run(strings.TrimSuffix(filepath.Base(f), ".txt"), func(t *testing.T) { playTranscript(t, f) })
	}
}

func playTranscript(t *testing.T, file string) {
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var l *lab
	var out strings.Builder
	lines := strings.Split(strings.TrimRight(string(raw), "\n"), "\n")
	for i := 0; i < len(lines); i++ {
		line := lines[i]
		out.WriteString(line + "\n")
		if line == "" || line[0] == '#' {
			continue
		}
		if l, err = command(l, strings.Fields(line)); err != nil {
			t.Fatalf("%s:%d: %v", file, i+1, err)
		}
		out.WriteString("----\n" + l.out.String() + "\n")
		l.out.Reset()
		for i+1 < len(lines) && lines[i+1] != "" { // what was expected
			i++
		}
		i++ // the blank line
	}
	got := strings.TrimRight(out.String(), "\n") + "\n"
	if strings.Contains(got, "BROKEN") {
		t.Errorf("an invariant is broken:\n%s", got)
	}
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(string(raw), got); diff != "" {
		t.Errorf("%s differs (-want +got); -update rewrites it\n%s", file, diff)
	}
}

// command performs one command of a transcript:
//
//	nodes N                     N nodes a, b, ..., nothing has run yet
//	run 10s                     time passes; prints what changes
//	settle 10s                  the same, printing nothing
//	until a b STEP 10s          the same, until a's pair with b is at STEP
//	tick                        one tick of 100 ms
//	status                      prints where each pair stands
//	target N a                  a learns the target epoch N; it spreads to all that a reaches
//	partition a b / c           messages, records and probes pass within a group only
//	heal                        everybody reaches everybody
//	restart a, reboot a         a new agent; a new kernel, too
//	partial a on|off            a has not read the records of others yet
//	rejects a on|off            a's drivers fail
//	unable a N on|off           a can make no device of epoch N
//	wire a N W                  a's device of epoch N will speak protocol W
//	lose-device a N, lose-peer a b N    somebody removes a link, or b from it
//	hole N on|off               large packets do not pass in epoch N
//	answers lost|pass           answers to agreements
//	probes lost|pass            probes, both ways
//	traffic a b on|off          packets flow from a to b all the time
//	messages on|off             messages are printed
//	hold on|off                 messages wait for the commands below
//	queue                       prints the messages that wait
//	deliver N, drop N, repeat N   the Nth message that waits; repeat keeps it
func command(l *lab, f []string) (*lab, error) {
	arg := func(i int) string {
		if i < len(f) {
			return f[i]
		}
		return ""
	}
	num := func(i int) int { n, _ := strconv.Atoi(arg(i)); return n }
	node := func(i int) int { return int((arg(i) + "a")[0] - 'a') }
	on := arg(len(f)-1) == "on"
	var n *simNode
	if l != nil && node(1) >= 0 && node(1) < len(l.nodes) {
		n = l.nodes[node(1)]
	}
	switch f[0] {
	case "nodes":
		return newLab(num(1)), nil
	case "run", "until", "settle":
		d, err := time.ParseDuration(arg(len(f) - 1))
		if err != nil {
			return l, err
		}
		done := func() bool { return f[0] == "until" && l.step(node(1), node(2)) == Step(arg(3)) }
		switch here := l.run(d, done); {
		case f[0] == "settle":
			l.out.Reset()
		case f[0] == "until" && !here:
			l.printf("%s>%s has not come to %q", arg(1), arg(2), arg(3))
		}
		return l, nil
	case "tick":
		l.tick()
		l.now = l.now.Add(labTick)
		return l, nil
	case "status":
		l.status()
		return l, nil
	case "target":
		n = l.nodes[node(2)]
		n.target = uint8(num(1))
	case "partition":
		group := 0
		for i := range f[1:] {
			if f[1+i] == "/" {
				group++
			} else {
				l.groups[node(1+i)] = group
			}
		}
	case "heal":
		l.groups = [simNodes]int{}
	case "restart":
		n.restart(labTiming)
	case "reboot":
		n.reboot(labTiming)
	case "partial":
		n.partial = on
	case "rejects":
		n.rejects = on
	case "unable":
		n.unable = setBit(n.unable, num(2), on)
	case "wire":
		n.wires[num(2)] = uint8(num(3))
	case "lose-device":
		n.loseDevice(num(2))
	case "lose-peer":
		n.loseHold(num(3), node(2))
	case "hole":
		l.hole = setBit(l.hole, num(1), on)
	case "answers":
		l.lossy["answer"] = arg(1) == "lost"
	case "probes":
		l.lossy["probe"] = arg(1) == "lost"
	case "traffic":
		l.rx[node(1)][node(2)] = on
	case "messages":
		l.quiet = !on
	case "hold":
		l.manual = on
	case "queue", "deliver", "drop", "repeat":
		return l, l.mail(f[0], num(1))
	default:
		return l, fmt.Errorf("unknown command %q", f[0])
	}
	for i := range l.nodes {
		l.wake[i] = l.now // whoever notices looks
	}
	return l, nil
}

func (l *lab) mail(what string, i int) error {
	if what == "queue" {
		for i, p := range l.wire {
			fmt.Fprintf(&l.out, "%d: %s>%s %s\n", i, name(p.from), name(p.to), show(p.packet))
		}
		return nil
	}
	if i >= len(l.wire) {
		return fmt.Errorf("%d messages wait", len(l.wire))
	}
	p := l.wire[i]
	if what != "repeat" {
		l.wire = slices.Delete(l.wire, i, i+1)
	}
	if what != "drop" {
		l.arrive(p)
	}
	return nil
}

func setBit(set uint8, i int, on bool) uint8 {
	if on {
		return set | 1<<i
	}
	return set &^ (1 << i)
}
