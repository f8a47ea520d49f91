package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// controlResult is what `bench control` measures.
type controlResult struct {
	Attach  []latency `json:"attach"`  // from the command to the first answered ping of another node
	Network []latency `json:"network"` // from `network create` until the last node knows it
	Entries []rate    `json:"entries"` // forwarding and neighbour entries
	Memory  []memory  `json:"memory"`  // of one agent
}

// latency is a time, by number of nodes.
type latency struct {
	Nodes   int     `json:"nodes"`
	Samples int     `json:"samples"`
	P50     float64 `json:"p50_ms"`
	P99     float64 `json:"p99_ms"`
}

func latencyOf(nodes int, list []time.Duration) latency {
	sorted := slices.Sorted(slices.Values(list))
	at := func(q float64) float64 {
		if len(sorted) == 0 {
			return 0
		}
		i := min(len(sorted)-1, int(q*float64(len(sorted))))
		return float64(sorted[i].Microseconds()) / 1000
	}
	return latency{nodes, len(sorted), at(0.50), at(0.99)}
}

// controlBench measures how fast the control plane is. The result goes to out, what it is
// doing to standard error.
func controlBench(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("control", flag.ContinueOnError)
	list := fs.String("nodes", "3,10", "numbers of real agents on this machine, separated by commas; empty: none")
	samples := fs.Int("samples", 50, "endpoints attached, and networks created, with each number of nodes")
	remotes := fs.Int("remotes", 2000, "remote endpoints programmed")
	rounds := fs.Int("rounds", 5, "rounds of programming them")
	memories := fs.String("memory", "0,1000,10000", "numbers of endpoints on other nodes with which an agent's memory is read; empty: none")
	profile := fs.String("profile", config.ProfileLocal, "timers of the agents: local, lan or wan")
	format := fs.String("o", "table", "table or json")
	if err := fs.Parse(args); err != nil {
		return err
	}
	nodes, err := numbers(*list, 2)
	if err != nil {
		return err
	}
	counts, err := numbers(*memories, 0)
	if err != nil {
		return err
	}
	bin, clean, err := buildProgram(ctx)
	if err != nil {
		return err
	}
	defer clean()
	var res controlResult
	for _, n := range nodes {
		fmt.Fprintf(os.Stderr, ".. %d nodes\n", n)
		if err := res.measureFleet(ctx, bin, *profile, n, *samples); err != nil {
			return fmt.Errorf("with %d nodes: %w", n, err)
		}
	}
	fmt.Fprintf(os.Stderr, ".. entries of %d remote endpoints\n", *remotes)
	if res.Entries, err = programming(ctx, *remotes, *rounds); err != nil {
		return err
	}
	if len(counts) > 0 {
		fmt.Fprintf(os.Stderr, ".. memory with %s remote endpoints\n", *memories)
		if res.Memory, err = memoryTimes(ctx, bin, counts); err != nil {
			return err
		}
	}
	if *format == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(res)
	}
	return printControl(out, res)
}

// measureFleet adds what a fleet of real agents does.
func (r *controlResult) measureFleet(ctx context.Context, bin, profile string, nodes, samples int) (err error) {
	ctx, cancel := context.WithTimeout(ctx, realLimit+time.Duration(nodes)*10*time.Second+time.Duration(samples)*5*time.Second)
	defer cancel()
	f, err := fleet.New(fleet.Options{Name: "bench", Binary: bin, Nodes: nodes, Networks: networks("")[:1], Profile: profile})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Lab.Acquaint(); err != nil {
		return err
	}
	if err := f.Start(ctx); err != nil {
		return err
	}
	attached, err := attachTimes(ctx, f, samples)
	if err != nil {
		return err
	}
	spread, err := spreadTimes(ctx, f, samples)
	if err != nil {
		return err
	}
	r.Attach = append(r.Attach, latencyOf(nodes, attached))
	r.Network = append(r.Network, latencyOf(nodes, spread))
	return nil
}

// attachTimes attaches containers on one node and pings each from another all along.
func attachTimes(ctx context.Context, f *fleet.Fleet, samples int) ([]time.Duration, error) {
	from, err := f.Attach(ctx, f.Nodes[0], "blue")
	if err != nil {
		return nil, err
	}
	list, err := f.Nodes[0].Client().Networks(ctx)
	if err != nil {
		return nil, err
	}
	vni := list.Networks[slices.IndexFunc(list.Networks, func(n api.Network) bool { return n.Name == "blue" })].VNI
	var out []time.Duration
	for i := range samples {
		ip := netip.AddrFrom4([4]byte{10, 77, 255, byte(i%250 + 1)})
		// Its MAC follows from its address, so nobody has to ask for it and wait.
		if err := from.Box.Neighbour(from.Endpoint.Ifname, ip, ids.EndpointMAC(vni, ip)); err != nil {
			return nil, err
		}
		box, err := f.Lab.Container(fmt.Sprintf("sample%d", i))
		if err != nil {
			return nil, err
		}
		start := time.Now()
		answered := make(chan time.Duration, 1)
		looking, stop := context.WithTimeout(ctx, 10*time.Second)
		go func() {
			for looking.Err() == nil {
				if p, err := netlab.Ping(looking, from.Box.NS(), ip, netlab.PingOptions{Timeout: 5 * time.Millisecond}); err == nil && p.Received > 0 {
					answered <- time.Since(start)
					return
				}
			}
			close(answered)
		}()
		at, err := f.AttachBox(ctx, f.Nodes[1], box, "blue", "--ip", ip.String())
		took, ok := <-answered
		stop()
		if err != nil || !ok {
			return nil, errors.Join(err, fmt.Errorf("endpoint %s was answered: %v", ip, ok))
		}
		out = append(out, took)
		if err := f.Nodes[1].Client().Detach(ctx, at.Endpoint.ID); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// spreadTimes creates networks and looks until every node knows each.
func spreadTimes(ctx context.Context, f *fleet.Fleet, samples int) ([]time.Duration, error) {
	var out []time.Duration
	for i := range samples {
		name := fmt.Sprintf("made%d", i)
		start := time.Now()
		req := api.NetworkRequest{Name: name, Subnets: []string{fmt.Sprintf("10.200.%d.0/24", i%256)}}
		if _, err := f.Nodes[0].Client().CreateNetwork(ctx, req); err != nil {
			return nil, err
		}
		var wg sync.WaitGroup
		errs := make([]error, len(f.Nodes))
		for k, n := range f.Nodes {
			wg.Go(func() { errs[k] = waitKnown(ctx, n, name) })
		}
		wg.Wait()
		if err := errors.Join(errs...); err != nil {
			return nil, err
		}
		out = append(out, time.Since(start))
		if err := f.Nodes[0].Client().RemoveNetwork(ctx, name, true); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func waitKnown(ctx context.Context, n *fleet.Node, name string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		list, err := n.Client().Networks(ctx)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(list.Networks, func(n api.Network) bool { return n.Name == name }) {
			return nil
		}
		<-tick.C
	}
}

func printControl(out io.Writer, r controlResult) error {
	screen := cli.Screen{W: out}
	t := cli.NewTable("what", "nodes", "samples", "p50 ms", "p99 ms")
	for _, part := range []struct {
		what string
		list []latency
	}{{"attach to first answered ping", r.Attach}, {"network create to last node", r.Network}} {
		for _, l := range part.list {
			t.Row(part.what, fmt.Sprint(l.Nodes), fmt.Sprint(l.Samples), fmt.Sprintf("%.1f", l.P50), fmt.Sprintf("%.1f", l.P99))
		}
	}
	if err := t.Print(screen); err != nil {
		return err
	}
	fmt.Fprintln(out)
	t = cli.NewTable("entries by", "entries", "per second", "ratio")
	for _, e := range r.Entries {
		t.Row(e.Name, fmt.Sprint(e.Entries), fmt.Sprintf("%.0f", e.PerSecond), fmt.Sprintf("%.2f", e.PerSecond/r.Entries[0].PerSecond))
	}
	if err := t.Print(screen); err != nil {
		return err
	}
	fmt.Fprintln(out)
	t = cli.NewTable("remote endpoints", "kernel entries", "there after s", "RSS MiB", "peak MiB", "heap MiB", "CPU at rest")
	for _, m := range r.Memory {
		t.Row(fmt.Sprint(m.Remotes), fmt.Sprint(m.Entries), fmt.Sprintf("%.1f", m.Seconds), fmt.Sprintf("%.1f", m.RSS),
			fmt.Sprintf("%.1f", m.Peak), fmt.Sprintf("%.1f", m.Heap), fmt.Sprintf("%.1f %%", 100*m.CPUShare))
	}
	return t.Print(screen)
}
