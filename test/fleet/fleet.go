package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// Network is an overlay network that every node's config file lists.
type Network struct {
	Name      string
	Encrypted bool
	Subnets   []netip.Prefix
	Driver    string // empty: auto
}

// Options says what fleet to make.
type Options struct {
	Name     string // of the lab
	Binary   string // the secure-overlay program
	Nodes    int    // from 32 on, call Lab.Acquaint before Start
	Networks []Network
	Host     []netlab.HostOption // for every host
	// Config is further text for every node's config file: whole top-level
	// keys, such as "keys:\n  rotate_every: 5s\n".
	Config string
	// Derive leaves control.advertise out: agents find their address themselves.
	Derive bool
	// Profile is control.profile of every node; empty: local.
	Profile string
	// Step is told what happens, for people; nil: nobody.
	Step func(what string)
	// Log receives the agents' logs; nil: one file per node in the lab's folder.
	Log io.Writer
}

// Fleet is a lab with one agent per host. It is used by one goroutine.
type Fleet struct {
	Lab   *netlab.Lab
	Nodes []*Node

	o          Options
	containers int
}

// Names that the hosts get, in order.
func hostName(i int) string { return fmt.Sprintf("host%d", i+1) }

// New makes the lab, its hosts and their config files; nothing runs yet. The
// caller calls Close, also when later calls fail.
func New(o Options) (*Fleet, error) {
	if o.Step == nil {
		o.Step = func(string) {}
	}
	lab, err := netlab.New(o.Name)
	if err != nil {
		return nil, err
	}
	f := &Fleet{Lab: lab, o: o}
	for i := range o.Nodes {
		if _, err := f.AddNode(hostName(i)); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

// AddNode adds a host with a config file. It does not join or start it.
func (f *Fleet) AddNode(name string, opts ...netlab.HostOption) (*Node, error) {
	host, err := f.Lab.Host(name, append(append([]netlab.HostOption{}, f.o.Host...), opts...)...)
	if err != nil {
		return nil, err
	}
	n := &Node{
		Host: host, Name: name,
		dir:    filepath.Join(f.Lab.Dir(), name),
		binary: f.o.Binary, log: f.o.Log, config: f.o.Config, profile: cmp.Or(f.o.Profile, config.ProfileLocal), derive: f.o.Derive,
	}
	n.client = api.NewClient(filepath.Join(n.RuntimeDir(), "agent.sock"))
	if err := os.Mkdir(n.dir, 0o700); err != nil {
		return nil, fmt.Errorf("add node %s: %w", name, err)
	}
	if err := n.WriteConfig(f.o.Networks); err != nil {
		return nil, err
	}
	f.Nodes = append(f.Nodes, n)
	return n, nil
}

// Start does what an operator does: init on the first node, up, then for
// every other node a token, join and up; it returns when every node is ready
// and reports every other as connected.
func (f *Fleet) Start(ctx context.Context) error {
	first := f.Nodes[0]
	f.o.Step("init a cluster on " + first.Name)
	if _, err := first.CLI(ctx, "init"); err != nil {
		return err
	}
	f.o.Step("start the agent on " + first.Name)
	if err := first.Up(ctx); err != nil {
		return err
	}
	for _, n := range f.Nodes[1:] {
		f.o.Step("join " + n.Name + " with a single-use token")
		if err := f.Join(ctx, n); err != nil {
			return err
		}
	}
	f.o.Step("wait until every pair has proved its tunnel")
	return f.WaitConnected(ctx)
}

// Join makes a token on the first node, joins n with it and starts n's agent.
func (f *Fleet) Join(ctx context.Context, n *Node) error {
	token, err := f.Token(ctx)
	if err != nil {
		return err
	}
	if _, err := n.CLI(ctx, "join", token); err != nil {
		return err
	}
	return n.Up(ctx)
}

// Token makes a join token on the first node.
func (f *Fleet) Token(ctx context.Context) (string, error) {
	var tok api.NewToken
	if err := f.Nodes[0].JSON(ctx, &tok, "token", "create"); err != nil {
		return "", err
	}
	return tok.Text, nil
}

// WaitConnected waits until every running node is in state ok and counts
// every other running node as a connected peer of every network.
func (f *Fleet) WaitConnected(ctx context.Context) error {
	running := 0
	for _, n := range f.Nodes {
		if n.Running() {
			running++
		}
	}
	for _, n := range f.Nodes {
		if !n.Running() {
			continue
		}
		err := n.WaitStatus(ctx, fmt.Sprintf("%d connected peers", running-1), func(s api.Status) bool {
			return s.State == api.StateOK && connected(s, running-1)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func connected(s api.Status, peers int) bool {
	for _, nw := range s.Networks {
		if nw.Peers.OK != peers || nw.Peers.Total != peers {
			return false
		}
	}
	return true
}

// Attached is a container on an overlay network.
type Attached struct {
	Box      *netlab.Box
	Node     *Node
	Endpoint api.Endpoint
}

// V4 returns the container's first IPv4 address, or the zero Addr.
func (a Attached) V4() netip.Addr { return a.addr(netip.Addr.Is4) }

// V6 returns the container's first IPv6 address, or the zero Addr.
func (a Attached) V6() netip.Addr { return a.addr(netip.Addr.Is6) }

func (a Attached) addr(is func(netip.Addr) bool) netip.Addr {
	for _, p := range a.Endpoint.Addresses {
		if is(p.Addr()) {
			return p.Addr()
		}
	}
	return netip.Addr{}
}

// Attach makes a container on a node's host and attaches it to a network
// with the attach command.
func (f *Fleet) Attach(ctx context.Context, n *Node, network string, extra ...string) (Attached, error) {
	f.containers++
	box, err := f.Lab.Container(fmt.Sprintf("c%d-%s", f.containers, n.Name))
	if err != nil {
		return Attached{}, err
	}
	return f.AttachBox(ctx, n, box, network, extra...)
}

// AttachBox attaches an existing container to a network.
func (f *Fleet) AttachBox(ctx context.Context, n *Node, box *netlab.Box, network string, extra ...string) (Attached, error) {
	a := Attached{Box: box, Node: n}
	args := append([]string{"attach", network, "--netns", box.Path()}, extra...)
	return a, n.JSON(ctx, &a.Endpoint, args...)
}

// WaitEndpoints waits until every running node knows n endpoints of a
// network and has programmed them.
func (f *Fleet) WaitEndpoints(ctx context.Context, network string, n int) error {
	for _, node := range f.Nodes {
		if !node.Running() {
			continue
		}
		err := node.WaitStatus(ctx, fmt.Sprintf("%d endpoints on %s", n, network), func(s api.Status) bool {
			for _, nw := range s.Networks {
				if nw.Name == network {
					return nw.EndpointsTotal == n
				}
			}
			return false
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Close takes every node down, ends whatever still runs, and removes the lab.
func (f *Fleet) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second+time.Duration(len(f.Nodes))*5*time.Second)
	defer cancel()
	errs := make([]error, len(f.Nodes))
	slots := make(chan struct{}, 8)
	var wg sync.WaitGroup
	for i, n := range f.Nodes {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			errs[i] = n.cleanUp(ctx)
		})
	}
	wg.Wait()
	return errors.Join(append(errs, f.Lab.Close())...)
}

// configText is a node's config file.
func configText(n *Node, networks []Network) string {
	var b strings.Builder
	fmt.Fprintf(&b, "node:\n  name: %s\n", n.Name)
	fmt.Fprintf(&b, "data_dir: %s\nruntime_dir: %s\n", n.DataDir(), n.RuntimeDir())
	fmt.Fprintf(&b, "control:\n  profile: %s\n", n.profile)
	if !n.derive {
		fmt.Fprintf(&b, "  advertise: %q\n", netip.AddrPortFrom(n.Host.Addr(), 7946))
	}
	b.WriteString("log:\n  level: debug\n")
	if len(networks) > 0 {
		b.WriteString("networks:\n")
	}
	for _, nw := range networks {
		fmt.Fprintf(&b, "  - name: %s\n    subnets: [", nw.Name)
		for i, s := range nw.Subnets {
			if i > 0 {
				b.WriteString(", ")
			}
			fmt.Fprintf(&b, "%q", s.String())
		}
		b.WriteString("]\n")
		if !nw.Encrypted {
			b.WriteString("    encrypted: false\n")
		}
		if nw.Driver != "" {
			fmt.Fprintf(&b, "    driver: %s\n", nw.Driver)
		}
	}
	b.WriteString(onCommand(n.config))
	return b.String()
}

// onCommand lets keys change on command only, unless config says when: else nodes go over to the
// driver that suits all of them in the middle of a test.
func onCommand(config string) string {
	const keys, never = "keys:\n", "  rotate_every: 0s\n"
	switch {
	case strings.Contains(config, "rotate_every:"):
		return config
	case strings.Contains(config, keys):
		return strings.Replace(config, keys, keys+never, 1)
	}
	return config + keys + never
}
