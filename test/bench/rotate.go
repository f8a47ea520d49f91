package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/test/netlab"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/ipsec"
	"github.com/secure-overlay/secure-overlay/tunnel/wgkernel"
	"github.com/secure-overlay/secure-overlay/tunnel/wguser"
)

// rotationRow is the result of one driver and number of nodes.
type rotationRow struct {
	Driver string `json:"driver"`
	Nodes  int    `json:"nodes"`
	// Simulated: real machines in made-up time, with Costs; else real agents.
	Simulated bool `json:"simulated"`
	Rotations int  `json:"rotations"`
	// Left says for each step when the last pair left it: seconds from the
	// request, median over the rotations. All is when nothing older was left.
	Left map[rotate.Step]float64 `json:"left"`
	All  float64                 `json:"all"`
	// Costs of the simulation, in nanoseconds.
	Costs *costs `json:"costs,omitempty"`
}

// rotateBench measures rotations of real agents and simulates larger clusters.
// The result goes to out, what it is doing to standard error.
func rotateBench(ctx context.Context, args []string, out io.Writer) error {
	fs := flag.NewFlagSet("rotate", flag.ContinueOnError)
	real := fs.String("real", "3", "numbers of real agents on this machine, separated by commas; at most 16")
	simulated := fs.String("simulated", "3,10,50", "numbers of simulated nodes, separated by commas")
	rounds := fs.Int("rounds", 5, "rotations of each set-up")
	drivers := fs.String("drivers", "", "names of drivers, separated by commas; empty: all that work here")
	format := fs.String("o", "table", "table or json")
	if err := fs.Parse(args); err != nil {
		return err
	}
	chosen, err := pick(kinds(), *drivers)
	if err != nil {
		return err
	}
	realNodes, err := numbers(*real, 2)
	if err != nil {
		return err
	}
	simNodes, err := numbers(*simulated, 2)
	if err != nil {
		return err
	}
	var rows []rotationRow
	for _, kind := range chosen {
		switch err := kindWorks(ctx, kind); {
		case err != nil && *drivers != "":
			return fmt.Errorf("driver %s: %w", kind.Name, err)
		case err != nil:
			fmt.Fprintf(os.Stderr, ".. %s passed over: %v\n", kind.Name, err)
			continue
		}
		more, err := rotateDriver(ctx, kind, realNodes, simNodes, *rounds)
		if err != nil {
			return fmt.Errorf("driver %s: %w", kind.Name, err)
		}
		rows = append(rows, more...)
	}
	if *format == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(rows)
	}
	printRotations(out, rows)
	return nil
}

// pick returns the drivers of a list of names, or all.
func pick(all []tunnel.Kind, list string) ([]tunnel.Kind, error) {
	if list == "" {
		return all, nil
	}
	var out []tunnel.Kind
	for _, name := range strings.Split(list, ",") {
		i := slices.IndexFunc(all, func(k tunnel.Kind) bool { return k.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("there is no driver %q", name)
		}
		out = append(out, all[i])
	}
	return out, nil
}

// kinds are the drivers, with this program as the userspace worker.
func kinds() []tunnel.Kind {
	return []tunnel.Kind{
		wgkernel.Kind(), wguser.Kind(wguser.Options{Worker: []string{"/proc/self/exe", "worker"}}), ipsec.Kind(ipsec.Options{}),
	}
}

// kindWorks asks a driver whether it can work here, in a host of its own.
func kindWorks(ctx context.Context, kind tunnel.Kind) (err error) {
	lab, err := netlab.New("probe")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	host, err := lab.Host("host1")
	if err != nil {
		return err
	}
	sec, err := lab.Container("secure")
	if err != nil {
		return err
	}
	return kind.Probe(ctx, tunnel.Env{Host: host.NS(), Secure: sec.NS(), RuntimeDir: lab.Dir()})
}

// rotateDriver measures one driver: costs, real agents, simulation.
func rotateDriver(ctx context.Context, kind tunnel.Kind, real, simulated []int, rounds int) ([]rotationRow, error) {
	c := costs{RTT: time.Millisecond}
	fmt.Fprintf(os.Stderr, ".. %s: costs of single operations\n", kind.Name)
	if err := measureAgree(ctx, &c); err != nil {
		return nil, err
	}
	if err := measureCosts(ctx, kind, &c); err != nil {
		return nil, err
	}
	var rows []rotationRow
	for _, nodes := range real {
		fmt.Fprintf(os.Stderr, ".. %s: %d real agents\n", kind.Name, nodes)
		row, err := rotateReal(ctx, kind.Name, nodes, rounds, &c)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row)
	}
	fmt.Fprintf(os.Stderr, ".. %s: %v\n", kind.Name, c)
	for _, nodes := range simulated {
		w := newSimWorld(nodes, c)
		if !w.settle() {
			return nil, fmt.Errorf("simulate %d nodes: they do not connect", nodes)
		}
		row := rotationRow{Driver: kind.Name, Nodes: nodes, Simulated: true, Rotations: rounds, Costs: &c}
		var all []*phases
		for range rounds {
			p, ok := w.rotate()
			if !ok {
				return nil, fmt.Errorf("simulate %d nodes: the rotation does not end", nodes)
			}
			all = append(all, p)
		}
		row.take(all)
		rows = append(rows, row)
	}
	return rows, nil
}

// take fills in the medians.
func (r *rotationRow) take(all []*phases) {
	r.Left = map[rotate.Step]float64{}
	for _, s := range steps() {
		var times []time.Duration
		for _, p := range all {
			times = append(times, p.left[s])
		}
		r.Left[s] = median(times).Seconds()
	}
	var times []time.Duration
	for _, p := range all {
		times = append(times, p.all)
	}
	r.All = median(times).Seconds()
}

func printRotations(w io.Writer, rows []rotationRow) {
	_, _ = fmt.Fprint(w, "milliseconds from the request until the last pair has left a step, medians\n\n")
	_, _ = fmt.Fprintf(w, "%-10s %6s %-9s", "DRIVER", "NODES", "AGENTS")
	for _, s := range steps() {
		_, _ = fmt.Fprintf(w, " %8s", strings.ToUpper(string(s)))
	}
	_, _ = fmt.Fprintf(w, " %8s\n", "ALL")
	for _, r := range rows {
		how := "real"
		if r.Simulated {
			how = "simulated"
		}
		_, _ = fmt.Fprintf(w, "%-10s %6d %-9s", r.Driver, r.Nodes, how)
		for _, s := range steps() {
			_, _ = fmt.Fprintf(w, " %8.0f", r.Left[s]*1000)
		}
		_, _ = fmt.Fprintf(w, " %8.0f\n", r.All*1000)
	}
}

func numbers(list string, least int) ([]int, error) {
	var out []int
	for _, s := range strings.Split(list, ",") {
		if s == "" {
			continue
		}
		n, err := strconv.Atoi(s)
		if err != nil || n < least {
			return nil, fmt.Errorf("number %q: want numbers from %d on", s, least)
		}
		out = append(out, n)
	}
	slices.Sort(out)
	return out, nil
}
