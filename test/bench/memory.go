package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// memory is what an agent needs with so many endpoints on other nodes.
type memory struct {
	Remotes  int     `json:"remotes"`
	Entries  int     `json:"entries"`     // of the kernel: forwarding and neighbours
	Seconds  float64 `json:"seconds"`     // from their publication until the kernel has them
	RSS      float64 `json:"rss_mib"`     // at rest
	Peak     float64 `json:"peak_mib"`    // highest RSS since the start of the agent
	Heap     float64 `json:"heap_mib"`    // Go heap in use, at rest
	CPUShare float64 `json:"cpu_at_rest"` // of one CPU, from 0 on
}

// restFor is how long an agent is watched at rest: some resyncs.
const restFor = 15 * time.Second

// memoryTimes runs one real agent and members that publish endpoints in signed records
// and have no data plane. The agent programs an entry for each as for any other.
func memoryTimes(ctx context.Context, bin string, counts []int) (out []memory, err error) {
	ctx, cancel := context.WithTimeout(ctx, realLimit+time.Duration(len(counts))*2*time.Minute)
	defer cancel()
	members := (slices.Max(counts) + record.MaxAttached - 1) / record.MaxAttached
	nets := []fleet.Network{{Name: "lab", Subnets: []netip.Prefix{netip.MustParsePrefix("10.78.0.0/16"), netip.MustParsePrefix("fd78::/64")}}}
	f, err := fleet.New(fleet.Options{Name: "bench", Binary: bin, Nodes: 1 + members, Networks: nets})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	agent := f.Nodes[0]
	if _, err := agent.CLI(ctx, "init"); err != nil {
		return nil, err
	}
	if err := agent.Up(ctx); err != nil {
		return nil, err
	}
	list, err := agent.Client().Networks(ctx)
	if err != nil {
		return nil, err
	}
	var running []*publisher
	defer func() {
		for _, p := range running {
			err = errors.Join(err, p.end())
		}
	}()
	for _, n := range f.Nodes[1:] {
		token, err := f.Token(ctx)
		if err != nil {
			return nil, err
		}
		if _, err := n.CLI(ctx, "join", token); err != nil {
			return nil, err
		}
		p, err := startPublisher(ctx, n)
		if err != nil {
			return nil, err
		}
		running = append(running, p)
	}
	for _, count := range counts {
		m, err := measureMemory(ctx, agent, running, list.Networks[0], count)
		if err != nil {
			return nil, fmt.Errorf("%d remote endpoints: %w", count, err)
		}
		out = append(out, m)
	}
	return out, nil
}

// measureMemory has the members publish so many endpoints and looks at the agent.
func measureMemory(ctx context.Context, agent *fleet.Node, members []*publisher, n api.Network, count int) (memory, error) {
	m := memory{Remotes: count}
	start := time.Now()
	for i, p := range members {
		first := min(count, i*record.MaxAttached)
		if err := p.publish(n, first, min(count-first, record.MaxAttached)); err != nil {
			return m, err
		}
	}
	if err := agent.WaitStatus(ctx, "all members and endpoints", func(s api.Status) bool {
		return s.Members.OK == 1+len(members) && len(s.Networks) == 1 && s.Networks[0].EndpointsTotal == count
	}); err != nil {
		return m, err
	}
	// Of each: where it is by VXLAN, and its two addresses; of each member: what is for all.
	want := 3*count + len(members)
	for m.Entries != want {
		var err error
		if m.Entries, err = kernelEntries(ctx, agent); err != nil {
			return m, err
		}
		if ctx.Err() != nil {
			return m, fmt.Errorf("the kernel has %d entries, want %d: %w", m.Entries, want, ctx.Err())
		}
	}
	m.Seconds = time.Since(start).Seconds()
	before, err := cpuTime(agent.PID())
	if err != nil {
		return m, err
	}
	select {
	case <-time.After(restFor):
	case <-ctx.Done():
		return m, ctx.Err()
	}
	after, err := cpuTime(agent.PID())
	if err != nil {
		return m, err
	}
	m.CPUShare = (after - before).Seconds() / restFor.Seconds()
	if m.RSS, m.Peak, err = residentSet(agent.PID()); err != nil {
		return m, err
	}
	m.Heap, err = heapInUse(ctx, agent)
	return m, err
}

// kernelEntries counts forwarding and neighbour entries of all networks.
func kernelEntries(ctx context.Context, n *fleet.Node) (int, error) {
	p := vxlan.NewProgrammer(vxlan.Options{Dir: filepath.Join(n.RuntimeDir(), "netns")})
	defer func() { _ = p.Close() }()
	seen, err := p.Observe(ctx, nil)
	count := 0
	for _, n := range seen.Networks {
		count += len(n.Forwards) + len(n.Neighbours)
	}
	return count, err
}

const mib = 1 << 20

// residentSet reads VmRSS and VmHWM (proc_pid_status(5), in kB) and returns MiB.
func residentSet(pid int) (now, peak float64, err error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	for line := range strings.Lines(string(raw)) {
		for name, to := range map[string]*float64{"VmRSS:": &now, "VmHWM:": &peak} {
			if f := strings.Fields(line); len(f) == 3 && f[0] == name {
				kib, convErr := strconv.ParseFloat(f[1], 64)
				*to, err = kib/1024, errors.Join(err, convErr)
			}
		}
	}
	return now, peak, err
}

// cpuTime is what a process has used, from fields 14 and 15 of proc_pid_stat(5), in
// ticks of 10 ms.
func cpuTime(pid int) (time.Duration, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may hold blanks.
	f := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
	var sum time.Duration
	for _, field := range f[11:13] {
		ticks, err := strconv.ParseInt(field, 10, 64)
		if err != nil {
			return 0, err
		}
		sum += time.Duration(ticks) * 10 * time.Millisecond
	}
	return sum, nil
}

// heapInUse reads the agent's own metric and returns MiB.
func heapInUse(ctx context.Context, n *fleet.Node) (float64, error) {
	text, err := n.Client().Metrics(ctx)
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, "go_memstats_heap_inuse_bytes "); ok {
			bytes, err := strconv.ParseFloat(strings.TrimSpace(v), 64)
			return bytes / mib, err
		}
	}
	return 0, errors.New("the agent's metrics lack go_memstats_heap_inuse_bytes")
}

// publication is an order to a publisher; a line on its standard input.
type publication struct {
	Underlay     netip.Addr
	Network      string
	VNI          ids.VNI
	Subnets      []netip.Prefix
	First, Count int // of the subnets' addresses
}

// memberEnv makes a copy of this program a member: by the environment, as everything
// that starts itself by arguments starts the tests where it is a test. It names
// the data folder.
const memberEnv = "SECURE_OVERLAY_BENCH_MEMBER"

// publisher is a member without an agent, see publish.go.
type publisher struct {
	node  *fleet.Node
	in    io.WriteCloser
	enc   *json.Encoder
	ended func() error
}

func startPublisher(ctx context.Context, n *fleet.Node) (*publisher, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := n.Host.Command(context.WithoutCancel(ctx), self) // ends with its input
	cmd.Env = append(os.Environ(), memberEnv+"="+n.DataDir())
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start a member on %s: %w", n.Name, err)
	}
	return &publisher{n, in, json.NewEncoder(in), cmd.Wait}, nil
}

func (p *publisher) publish(n api.Network, first, count int) error {
	return p.enc.Encode(publication{
		Underlay: p.node.Host.Addr(), Network: n.Name, VNI: n.VNI, Subnets: n.Subnets, First: first, Count: count,
	})
}

func (p *publisher) end() error { return errors.Join(p.in.Close(), p.ended()) }
