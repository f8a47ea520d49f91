package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// variant is one way between two namespaces.
type variant struct {
	name     string
	from, to *nl.Namespace
	dst      netip.Addr
	hosts    []*netlab.Host // whose processes carry it; none: the kernel does
	mbit     []float64
	cpu      []float64       // of the whole machine, in seconds per Gbit of payload
	busy     []float64       // share of all processors' time
	four     []float64       // Mbit/s of four streams together
	small    []float64       // small packets that arrived, in 1000/s
	lost     []float64       // share of the small packets that did not
	rtt      []time.Duration // of the idle way
	loaded   []time.Duration // beside four streams
	memory   float64         // MiB in use on a host
}

// throughput builds all set-ups side by side, measures them alternately and
// prints medians and ratios.
func throughput(ctx context.Context, args []string) (err error) {
	fs := flag.NewFlagSet("throughput", flag.ContinueOnError)
	rounds := fs.Int("rounds", 5, "rounds over all set-ups")
	seconds := fs.Float64("seconds", 2, "seconds of one TCP stream")
	mtu := fs.Int("mtu", 1500, "underlay MTU in bytes")
	only := fs.String("only", "", "measure only set-ups with this in their name, and "+wgName)
	others := fs.String("peers", "nebula,tailscale,tinc", "programs of others to measure, too; they are built or found first")
	if err := fs.Parse(args); err != nil {
		return err
	}
	bin, clean, err := buildProgram(ctx)
	if err != nil {
		return err
	}
	defer clean()
	var variants []*variant
	var fleets []*fleet.Fleet
	defer func() {
		for _, f := range fleets {
			err = errors.Join(err, f.Close())
		}
	}()
	for i, driver := range oursDrivers {
		f, err := startFleet(ctx, bin, driver, *mtu)
		if f != nil {
			fleets = append(fleets, f)
		}
		if err != nil {
			return err
		}
		if i == 0 {
			if variants, err = setUps(ctx, f, *others, *mtu); err != nil {
				return err
			}
		}
		v, err := attached(ctx, f, "blue", "ours, "+driver)
		if err != nil {
			return err
		}
		variants = append(variants, v)
	}
	variants = slices.DeleteFunc(variants, func(v *variant) bool { return v.name != wgName && !strings.Contains(v.name, *only) })
	for r := range *rounds {
		for _, v := range variants {
			fmt.Fprintf(os.Stderr, ".. round %d of %d: %s\n", r+1, *rounds, v.name)
			if err := v.measure(ctx, time.Duration(*seconds*float64(time.Second))); err != nil {
				return fmt.Errorf("measure %s: %w", v.name, err)
			}
		}
	}
	for _, v := range variants {
		if err := v.weigh(); err != nil {
			return err
		}
	}
	report(variants, *mtu)
	return nil
}

// networks are one of each kind, the encrypted one with a driver; empty: auto.
func networks(driver string) []fleet.Network {
	return []fleet.Network{
		{Name: "blue", Encrypted: true, Driver: driver, Subnets: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16")}},
		{Name: "lab", Subnets: []netip.Prefix{netip.MustParsePrefix("10.78.0.0/16")}},
	}
}

// oursDrivers are the drivers of ours that are measured: those that need nothing of the kernel.
var oursDrivers = []string{config.DriverUserspace, config.DriverIPsecUser}

// startFleet starts two nodes whose encrypted network has a driver. What it returns is to be
// closed, also with an error.
func startFleet(ctx context.Context, bin, driver string, mtu int) (*fleet.Fleet, error) {
	f, err := fleet.New(fleet.Options{
		Name: "bench", Binary: bin, Nodes: 2,
		Networks: networks(driver),
		Host:     []netlab.HostOption{netlab.WithMTU(mtu)},
		Step:     func(what string) { fmt.Fprintln(os.Stderr, "..", what) },
	})
	if err != nil {
		return nil, err
	}
	return f, f.Start(ctx)
}

// setUps makes what ours is compared with.
func setUps(ctx context.Context, f *fleet.Fleet, others string, mtu int) ([]*variant, error) {
	a, b := f.Nodes[0].Host, f.Nodes[1].Host
	wgDst, err := wireguardPair(ctx, f.Lab, mtu)
	if err != nil {
		return nil, err
	}
	plain, err := plainVXLAN(a, b, mtu)
	if err != nil {
		return nil, err
	}
	clear, err := attached(ctx, f, "lab", "ours, plaintext VXLAN")
	if err != nil {
		return nil, err
	}
	clear.hosts = nil // the agent has no part in it
	peers, err := startPeers(ctx, f.Lab, others, mtu)
	return append([]*variant{{name: "raw veth", from: a.NS(), to: b.NS(), dst: b.V4()}, plain, clear, wgDst}, peers...), err
}

// attached attaches an endpoint to a network on each of two nodes, and returns the way between them.
func attached(ctx context.Context, f *fleet.Fleet, network, name string) (*variant, error) {
	var at [2]fleet.Attached
	for i, n := range f.Nodes {
		var err error
		if at[i], err = f.Attach(ctx, n, network); err != nil {
			return nil, err
		}
	}
	if err := f.WaitEndpoints(ctx, network, 2); err != nil {
		return nil, err
	}
	hosts := []*netlab.Host{f.Nodes[0].Host, f.Nodes[1].Host}
	return &variant{name: name, from: at[0].Box.NS(), to: at[1].Box.NS(), dst: at[1].V4(), hosts: hosts}, nil
}

// plainVXLAN joins the two hosts by VXLAN devices made by hand, without bridge
// or container, on a port of their own.
func plainVXLAN(a, b *netlab.Host, mtu int) (*variant, error) {
	const vni, port = 77, 14789
	in := func(last byte) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 98, 0, last}), 24) }
	if err := a.VXLAN("plain0", vni, a.V4(), b.V4(), port, mtu-50, in(1)); err != nil {
		return nil, err
	}
	if err := b.VXLAN("plain0", vni, b.V4(), a.V4(), port, mtu-50, in(2)); err != nil {
		return nil, err
	}
	return &variant{name: plainName, from: a.NS(), to: b.NS(), dst: in(2).Addr()}, nil
}

// The set-ups that the others are compared with.
const (
	plainName = "plain VXLAN, by hand"
	wgName    = "wireguard-go, layer 3"
)

// measure adds one round: pings on the idle path, a TCP stream, four beside each other, small
// packets.
func (v *variant) measure(ctx context.Context, d time.Duration) error {
	ping, err := netlab.Ping(ctx, v.from, v.dst, netlab.PingOptions{Count: 100, Interval: 2 * time.Millisecond})
	if err != nil {
		return err
	}
	v.rtt = append(v.rtt, ping.RTTs...)
	busy, all, err := machineTime()
	if err != nil {
		return err
	}
	tcp, err := netlab.TCPTransfer(ctx, v.from, v.to, netip.AddrPortFrom(v.dst, 0), netlab.TransferOptions{Duration: d})
	if err != nil {
		return err
	}
	busyAfter, allAfter, err := machineTime()
	if err != nil {
		return err
	}
	used := busyAfter - busy
	v.mbit = append(v.mbit, tcp.MbitPerS)
	v.cpu = append(v.cpu, used.Seconds()/(tcp.MbitPerS*d.Seconds()/1000))
	v.busy = append(v.busy, used.Seconds()/(allAfter-all).Seconds())
	if err := v.load(ctx, d); err != nil {
		return err
	}
	sent, received, err := flood(ctx, v.from, v.to, v.dst, d)
	if err != nil {
		return err
	}
	v.small = append(v.small, float64(received)/d.Seconds()/1000)
	v.lost = append(v.lost, 1-float64(received)/float64(sent))
	return nil
}

// load has four streams beside each other, and pings meanwhile.
func (v *variant) load(ctx context.Context, d time.Duration) error {
	const interval = 20 * time.Millisecond
	var pings errgroup.Group
	pings.Go(func() error {
		r, err := netlab.Ping(ctx, v.from, v.dst, netlab.PingOptions{Count: int(d / interval), Interval: interval})
		v.loaded = append(v.loaded, r.RTTs...)
		return err
	})
	four, err := streams(ctx, v, 4, d)
	v.four = append(v.four, four)
	return errors.Join(err, pings.Wait())
}

// weigh reads how much memory the processes on a host have, after all the traffic.
func (v *variant) weigh() error {
	for _, h := range v.hosts {
		pids, err := h.Processes()
		if err != nil {
			return err
		}
		for _, pid := range pids {
			now, _, err := residentSet(pid)
			if err != nil {
				return err
			}
			v.memory += now / float64(len(v.hosts))
		}
	}
	return nil
}

func report(vs []*variant, mtu int) {
	var base *variant
	for _, v := range vs {
		if v.name == wgName {
			base = v
		}
	}
	ratio := func(v *variant, of func(*variant) float64) float64 { return of(v) / of(base) }
	fmt.Printf("underlay MTU %d, medians of %d alternated rounds; x: to %s\n\n", mtu, len(vs[0].mbit), wgName)
	fmt.Printf("%-22s %7s %11s %5s %7s %5s %6s %5s\n", "TCP", "MBIT/S", "MIN-MAX", "x", "4 STR.", "x", "S/GBIT", "BUSY")
	one, four := func(v *variant) float64 { return median(v.mbit) }, func(v *variant) float64 { return median(v.four) }
	for _, v := range vs {
		fmt.Printf("%-22s %7.0f %11s %5.2f %7.0f %5.2f %6.3f %4.0f%%\n", v.name, one(v),
			fmt.Sprintf("%.0f-%.0f", slices.Min(v.mbit), slices.Max(v.mbit)), ratio(v, one),
			four(v), ratio(v, four), median(v.cpu), 100*median(v.busy))
	}
	small, rtt := func(v *variant) float64 { return median(v.small) }, func(v *variant) float64 { return median(v.rtt).Seconds() }
	ms := func(d time.Duration) string { return fmt.Sprintf("%.2f", 1000*d.Seconds()) }
	fmt.Printf("\n%-22s %6s %5s %5s %7s %7s %5s %9s %5s\n", fmt.Sprintf("%d BYTES OF UDP; PING", smallPacket),
		"1000/S", "x", "LOST", "RTT MS", "P99", "x", "4 STREAMS", "MIB")
	for _, v := range vs {
		fmt.Printf("%-22s %6.0f %5.2f %4.0f%% %7s %7s %5.2f %9s %5.0f\n", v.name, small(v), ratio(v, small), 100*median(v.lost),
			ms(median(v.rtt)), ms(quantile(v.rtt, 0.99)), ratio(v, rtt), ms(median(v.loaded)), v.memory)
	}
}

// median returns the middle value of a non-empty list, or zero.
func median[T float64 | time.Duration](list []T) T { return quantile(list, 0.5) }

// quantile returns the value below which the share q of a list lies, or zero of an empty one.
func quantile[T float64 | time.Duration](list []T, q float64) T {
	if len(list) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(list))
	return sorted[int(q*float64(len(sorted)))]
}
