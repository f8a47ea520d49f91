package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"time"

	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// The limits of Options.Nodes.
const (
	MinNodes     = 2
	MaxNodes     = 16
	DefaultNodes = 3
)

// Options says what demonstration to give.
type Options struct {
	Nodes int
	// Program is the path of the secure-overlay program. It is copied, so
	// that agents can start their workers also when `go run` has removed it.
	Program string
	// Stage is told what begins; the stage before has ended then. Failed is
	// told that the current stage did not come to its end.
	Stage  func(what string)
	Failed func()
	// Hold, if not nil, is called with the findings while everything is
	// still up; the demonstration ends when it returns.
	Hold func(ctx context.Context, r Result, try []string) error
}

// Result is what was seen.
type Result struct {
	Schema   int       `json:"schema"`
	Nodes    int       `json:"nodes"`
	Networks []Network `json:"networks"`
	Rotation Rotation  `json:"rotation"`
	Seconds  float64   `json:"seconds"` // of the whole run
}

// Network is what was seen of one network.
type Network struct {
	Name          string `json:"name"`
	Encrypted     bool   `json:"encrypted"` // as the agents report it
	Driver        string `json:"driver"`
	MTU           int    `json:"mtu"` // bytes of IP packet
	PingsSent     int    `json:"pings_sent"`
	PingsReceived int    `json:"pings_received"`
	// WirePackets counts data packets seen on the wires of the hosts while
	// this network was in use, WireReadable those that held its marker, and
	// WireMissed those that a busy machine did not let the sniffer look at.
	WirePackets  uint64  `json:"wire_packets"`
	WireReadable uint64  `json:"wire_readable"`
	WireMissed   uint64  `json:"wire_missed"`
	MbitPerS     float64 `json:"mbit_per_s"` // one TCP stream between two hosts
}

// networks are what the demonstration runs.
func networks() []fleet.Network {
	return []fleet.Network{
		{Name: "blue", Encrypted: true, Subnets: []netip.Prefix{
			netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/64")}},
		{Name: "lab", Subnets: []netip.Prefix{
			netip.MustParsePrefix("10.78.0.0/16"), netip.MustParsePrefix("fd78::/64")}},
	}
}

// Run gives the demonstration. It takes seconds; when ctx ends it stops and
// cleans up. An error says what did not hold.
func Run(ctx context.Context, o Options) (Result, error) {
	if o.Nodes < MinNodes || o.Nodes > MaxNodes {
		return Result{}, fmt.Errorf("run demo with %d nodes: want %d to %d", o.Nodes, MinNodes, MaxNodes)
	}
	if os.Geteuid() != 0 {
		return Result{}, errors.New("run demo: making network namespaces needs root; run it with sudo")
	}
	start := time.Now()
	dir, err := os.MkdirTemp("", "secure-overlay-demo-")
	if err != nil {
		return Result{}, fmt.Errorf("run demo: %w", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	program := filepath.Join(dir, "secure-overlay")
	if err := copyProgram(o.Program, program); err != nil {
		return Result{}, err
	}
	r, err := run(ctx, o, program, start)
	return r, err
}

func run(ctx context.Context, o Options, program string, start time.Time) (r Result, err error) {
	o.Stage(fmt.Sprintf("make %d hosts out of network namespaces", o.Nodes))
	f, err := fleet.New(fleet.Options{
		Name: "demo", Binary: program, Nodes: o.Nodes, Networks: networks(), Step: o.Stage,
	})
	if err != nil {
		return Result{}, err
	}
	defer func() {
		if err != nil {
			o.Failed()
		}
		o.Stage("take everything down")
		err = errors.Join(err, f.Close())
	}()
	up, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	if err := f.Start(up); err != nil {
		return Result{}, err
	}
	r = Result{Schema: 1, Nodes: o.Nodes}
	var try []string
	for _, nw := range networks() {
		found, at, err := show(ctx, f, nw, o.Stage)
		if err != nil {
			return r, err
		}
		if found.Encrypted {
			if r.Rotation, err = rotate(ctx, f, at, o.Stage); err != nil {
				return r, err
			}
		}
		r.Networks = append(r.Networks, found)
		try = append(try, fmt.Sprintf("nsenter --net=%s ping %s", at[0].Box.Path(), at[1].V4()))
	}
	r.Seconds = time.Since(start).Seconds()
	if err := judge(r); err != nil {
		return r, err
	}
	if o.Hold != nil {
		return r, o.Hold(ctx, r, append(statusHints(f, program), try...))
	}
	return r, nil
}

// show runs traffic through one network and reports what the wires carried.
func show(ctx context.Context, f *fleet.Fleet, nw fleet.Network, stage func(string)) (Network, []fleet.Attached, error) {
	found := Network{Name: nw.Name}
	stage("attach a container on each host to " + nw.Name)
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	at := make([]fleet.Attached, len(f.Nodes))
	for i, n := range f.Nodes {
		var err error
		if at[i], err = f.Attach(ctx, n, nw.Name); err != nil {
			return found, nil, err
		}
	}
	if err := f.WaitEndpoints(ctx, nw.Name, len(at)); err != nil {
		return found, nil, err
	}
	if err := describe(ctx, f.Nodes[0], &found); err != nil {
		return found, nil, err
	}
	stage("ping all ways over " + nw.Name + " while sniffing every wire")
	marker := []byte("secure-overlay demo: payload of " + nw.Name + " ")
	readable, err := f.Lab.CaptureAll(netlab.ContainsMarker(marker))
	if err != nil {
		return found, nil, err
	}
	defer readable.Stop()
	ports := []uint16{4789}
	if found.Encrypted {
		ports = []uint16{51871, 51872, 51873} // one for each epoch that may live
	}
	packets, err := f.Lab.CaptureAll(netlab.UDPPort(ports...))
	if err != nil {
		return found, nil, err
	}
	defer packets.Stop()
	if err := pings(ctx, at, marker, &found); err != nil {
		return found, nil, err
	}
	stage("send a TCP stream over " + nw.Name)
	tcp, err := netlab.TCPTransfer(ctx, at[0].Box.NS(), at[1].Box.NS(),
		netip.AddrPortFrom(at[1].V4(), 0), netlab.TransferOptions{Duration: 2 * time.Second, Marker: marker})
	if err != nil {
		return found, nil, err
	}
	found.MbitPerS = tcp.MbitPerS
	seen := readable.Stop()
	found.WireReadable, found.WireMissed = seen.Matched, seen.Dropped
	found.WirePackets = packets.Stop().Matched
	return found, at, nil
}

// describe fills in what the first node's agent says about a network.
func describe(ctx context.Context, n *fleet.Node, found *Network) error {
	s, err := n.Status(ctx)
	if err != nil {
		return err
	}
	for _, nw := range s.Networks {
		if nw.Name == found.Name {
			found.Encrypted, found.Driver, found.MTU = nw.Encrypted, nw.Driver, nw.MTU
			return nil
		}
	}
	return fmt.Errorf("ask %s about network %s: its status does not list it", n.Name, found.Name)
}

// pings sends small and full-size pings between all pairs, over IPv4 and IPv6.
func pings(ctx context.Context, at []fleet.Attached, marker []byte, found *Network) error {
	for i, from := range at {
		for j, to := range at {
			if i == j {
				continue
			}
			for _, dst := range []netip.Addr{to.V4(), to.V6()} {
				header := 20 + 8
				if dst.Is6() {
					header = 40 + 8
				}
				for _, size := range []int{56, found.MTU - header} {
					res, err := netlab.Ping(ctx, from.Box.NS(), dst, netlab.PingOptions{
						Count: 2, Size: size, Interval: 10 * time.Millisecond, Timeout: 2 * time.Second,
						DontFragment: true, Marker: marker,
					})
					if err != nil {
						return err
					}
					found.PingsSent += res.Sent
					found.PingsReceived += res.Received
				}
			}
		}
	}
	return nil
}

func statusHints(f *fleet.Fleet, program string) []string {
	var hints []string
	for _, n := range f.Nodes {
		hints = append(hints, fmt.Sprintf("%s status -c %s", program, n.ConfigPath()))
	}
	return hints
}

func copyProgram(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return fmt.Errorf("copy the program: %w", err)
	}
	defer func() { _ = src.Close() }()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o700)
	if err != nil {
		return fmt.Errorf("copy the program: %w", err)
	}
	_, err = io.Copy(dst, src)
	if err := errors.Join(err, dst.Close()); err != nil {
		return fmt.Errorf("copy the program: %w", err)
	}
	return nil
}
