package resolver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
)

// Zone is what the resolver of one network knows. Its domain is the network's name in
// lower case, followed by ".overlay.". A network whose name makes no domain (two
// dots together, or one at the end) has names of a single label only.
type Zone struct {
	Network  string                  // of the configuration, as it is written there
	Listen   []netip.Addr            // gateway addresses; each gets port 53, UDP and TCP
	Subnets  []netip.Prefix          // of the network: whose sources are answered, and whose reverse names stay here
	Names    map[string][]netip.Addr // label, lower case, dots allowed -> addresses, of endpoints and services alike
	Reverse  map[netip.Addr]string   // address in Subnets -> label
	Internal bool                    // nothing is forwarded
}

// Options are what a server needs of its surroundings.
type Options struct {
	// Listen opens both sockets at an address, in the namespace that has it, or none.
	// It does not wait.
	Listen func(netip.AddrPort) (net.PacketConn, net.Listener, error)
	// Upstreams are the host's resolvers, the preferred one first; of more than
	// three, the others are not asked. It is called for each question that is
	// forwarded, from several goroutines at once.
	Upstreams func() []netip.AddrPort
	Log       *slog.Logger
}

// Server answers for all overlay networks of a node.
type Server struct {
	options Options
	ctx     context.Context // of everything that runs; ends with Close
	stop    context.CancelFunc
	running sync.WaitGroup

	mu       sync.Mutex // guards what follows
	networks map[string]*network
}

// New makes a server that answers nothing until Set.
func New(o Options) *Server {
	s := &Server{options: o, networks: make(map[string]*network)}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// Set makes the server answer for these networks, and for no others. Sockets that
// are right stay open, and names change between two questions. What could not be
// opened, or has failed since the last call, is opened: the error names the network and
// address of each that cannot be, and the rest is served. Set waits for nothing, and
// costs next to nothing if zones are what they were, in the same order.
//
// A socket stays in the namespace that it was opened in. Who makes a namespace anew
// calls Set once without its networks.
func (s *Server) Set(zones []Zone) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ctx.Err() != nil {
		return errors.New("set names of networks: the server is closed")
	}
	var errs []error
	overlay := allSubnets(zones)
	wanted := make(map[string]Zone, len(zones))
	for _, z := range zones {
		if _, twice := wanted[z.Network]; twice {
			errs = append(errs, fmt.Errorf("set names of network %q: it is there twice", z.Network))
			continue
		}
		wanted[z.Network] = z
	}
	// All that goes is closed first: its address may be wanted by another network.
	for name, n := range s.networks {
		n.keep(wanted[name].Listen)
		if _, ok := wanted[name]; !ok {
			delete(s.networks, name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(wanted)) {
		errs = append(errs, s.setOne(wanted[name], overlay)...)
	}
	return errors.Join(errs...)
}

func (s *Server) setOne(z Zone, overlay []netip.Prefix) []error {
	n := s.networks[z.Network]
	if n == nil {
		n = &network{
			name:     z.Network,
			forwards: make(chan struct{}, maxForwards),
			streams:  make(chan struct{}, maxStreams),
			sockets:  make(map[netip.Addr]*socket),
		}
		s.networks[z.Network] = n
	}
	if t := n.table.Load(); t == nil || !t.same(z, overlay) {
		n.table.Store(newTable(z, overlay))
	}
	var errs []error
	for _, a := range z.Listen {
		if n.sockets[a] != nil {
			continue
		}
		if err := s.open(n, a); err != nil {
			errs = append(errs, fmt.Errorf("answer names of network %q at %s: %w", z.Network, a, err))
		}
	}
	return errs
}

func (s *Server) open(n *network, a netip.Addr) error {
	packets, streams, err := s.options.Listen(netip.AddrPortFrom(a, port))
	if err != nil {
		return err
	}
	k := &socket{addr: a, packets: packets, streams: streams, queue: make(chan datagram, maxQueue)}
	k.ctx, k.stop = context.WithCancel(s.ctx)
	n.sockets[a] = k
	s.serve(n, k)
	s.options.Log.Info("names of a network are answered", logkey.Network, n.name, logkey.Addr, a.String())
	return nil
}

// keep closes the sockets at all other addresses, and forgets those that have failed.
func (n *network) keep(addrs []netip.Addr) {
	for a, k := range n.sockets {
		if k.dead() || !slices.Contains(addrs, a) {
			k.close()
			delete(n.sockets, a)
		}
	}
}

// allSubnets is sorted, so that it is equal for equal zones.
func allSubnets(zones []Zone) []netip.Prefix {
	var all []netip.Prefix
	for _, z := range zones {
		all = append(all, z.Subnets...)
	}
	slices.SortFunc(all, netip.Prefix.Compare)
	return slices.Compact(all)
}

// Close closes all sockets and waits until nothing runs any more. Questions that
// wait for a resolver get no answer. It can be called twice.
func (s *Server) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stop()
	for _, n := range s.networks {
		n.keep(nil)
	}
	clear(s.networks)
	s.running.Wait()
	return nil
}
