package vxlan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// Options are what a Programmer works in. The namespaces stay the caller's and
// must outlive the Programmer; for another secure namespace make a new one.
type Options struct {
	Node   ids.NodeID    // for the mark on links
	Host   *nl.Namespace // plaintext VXLAN sockets live here
	Secure *nl.Namespace // encrypted ones here; nil refuses encrypted networks
	Dir    string        // folder of the namespace files net-<network>
	Log    *slog.Logger  // nil: silent
}

// Errors that the agent decides on with errors.Is.
var (
	// ErrEndpointGone: the endpoint's namespace ended, or its path names
	// another namespace by now.
	ErrEndpointGone = errors.New("endpoint's network namespace is gone")
	// ErrNameTaken: the endpoint's namespace has a link of that name already.
	ErrNameTaken = errors.New("interface name is taken")
	// ErrVNITaken: a VXLAN device that is not ours has the same VNI and port.
	ErrVNITaken = errors.New("VNI is taken by another VXLAN device")
	// ErrPortTaken: the UDP port of VXLAN is in use by something else.
	ErrPortTaken = errors.New("UDP port is taken")
	// ErrForbidden: an endpoint cannot be in a namespace of the agent's own.
	ErrForbidden = errors.New("namespace belongs to the agent")
)

// Error blames one network, and where it applies one endpoint of it.
type Error struct {
	Network  string
	Endpoint string // ID; empty if the network as a whole is to blame
	Err      error
}

// Error implements error.
func (e *Error) Error() string {
	if e.Endpoint != "" {
		return "network " + e.Network + ": endpoint " + e.Endpoint + ": " + e.Err.Error()
	}
	return "network " + e.Network + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Programmer reads and writes the kernel side of overlay networks. It is used
// by one goroutine at a time. It keeps one netlink handle open for each
// namespace; what it knows of the kernel it reads anew with each Observe.
type Programmer struct {
	opts   Options
	rooms  map[string]*room // by network
	births map[Birthplace]*nl.Handle
}

// NewProgrammer returns a programmer; it touches nothing yet.
func NewProgrammer(o Options) *Programmer {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Programmer{opts: o, rooms: make(map[string]*room), births: make(map[Birthplace]*nl.Handle)}
}

// room is an open network namespace. index caches link indexes by name; it is
// emptied whenever links change.
type room struct {
	ns    *nl.Namespace
	id    nl.ID
	h     *nl.Handle
	many  *nl.Keyed // for entries, of which there are thousands
	index map[string]int
}

func (r *room) close() {
	r.many.Close()
	r.h.Close()
	_ = r.ns.Close()
}

const filePrefix = "net-"

// path returns the file of a network's namespace. Names come from the
// configuration, which allows fewer; the check here keeps a name from naming
// a file outside the folder whatever the configuration allows.
func (p *Programmer) path(network string) (string, error) {
	if network == "" || len(network) > 200 || strings.ContainsAny(network, "/\x00") {
		return "", fmt.Errorf("network name %q cannot name a file", network)
	}
	return filepath.Join(p.opts.Dir, filePrefix+network), nil
}

// open returns the namespace of a network, opened anew if the path names
// another one than last time.
func (p *Programmer) open(network string) (*room, error) {
	path, err := p.path(network)
	if err != nil {
		return nil, err
	}
	ns, err := nl.OpenNamespace(path)
	if err != nil {
		p.forget(network)
		return nil, err
	}
	id, err := ns.ID()
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	if r := p.rooms[network]; r != nil {
		if r.id == id {
			return r, ns.Close()
		}
		p.forget(network)
	}
	h, err := ns.Handle()
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	if err := ns.OpenRaw(h); err != nil {
		h.Close()
		return nil, errors.Join(err, ns.Close())
	}
	many, err := ns.Keyed(unix.NETLINK_ROUTE)
	if err != nil {
		h.Close()
		return nil, errors.Join(err, ns.Close())
	}
	r := &room{ns: ns, id: id, h: h, many: many, index: make(map[string]int)}
	p.rooms[network] = r
	return r, nil
}

func (p *Programmer) forget(network string) {
	if r := p.rooms[network]; r != nil {
		r.close()
		delete(p.rooms, network)
	}
}

// networks lists the networks that have a file in the folder, sorted.
func (p *Programmer) networks() ([]string, error) {
	entries, err := os.ReadDir(p.opts.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list network namespaces: %w", err)
	}
	var names []string
	for _, e := range entries {
		if name, ok := strings.CutPrefix(e.Name(), filePrefix); ok && name != "" && !e.IsDir() {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// birthplace returns the namespace that a Birthplace stands for.
func (p *Programmer) birthplace(b Birthplace) (*nl.Namespace, error) {
	switch {
	case b == BornSecure && p.opts.Secure != nil:
		return p.opts.Secure, nil
	case b == BornHost && p.opts.Host != nil:
		return p.opts.Host, nil
	}
	// There is nothing to fall back to: an encrypted network without a
	// secure namespace does not come up.
	return nil, fmt.Errorf("no %s namespace to make a VXLAN device in", b)
}

func (p *Programmer) birthHandle(b Birthplace) (*nl.Handle, error) {
	if h := p.births[b]; h != nil {
		return h, nil
	}
	ns, err := p.birthplace(b)
	if err != nil {
		return nil, err
	}
	h, err := ns.Handle()
	if err != nil {
		return nil, err
	}
	p.births[b] = h
	return h, nil
}

// Sync is Observe, Plan and Apply: what the agent calls on each round. It
// returns the operations it tried; none means nothing had to be done.
func (p *Programmer) Sync(ctx context.Context, want []Spec) ([]Op, error) {
	have, err := p.Observe(ctx, want)
	if ctx.Err() != nil {
		return nil, err
	}
	ops := Plan(want, have)
	return ops, errors.Join(err, p.Apply(ctx, ops))
}

// Remove removes every network in the folder, and nothing else.
func (p *Programmer) Remove(ctx context.Context) error {
	names, err := p.networks()
	if err != nil {
		return err
	}
	var ops []Op
	for _, name := range names {
		ops = append(ops, Op{Kind: OpDelNamespace, Network: name})
	}
	return p.Apply(ctx, ops)
}

// Close releases handles. The networks stay and carry on.
func (p *Programmer) Close() error {
	for name := range p.rooms {
		p.forget(name)
	}
	for b, h := range p.births {
		h.Close()
		delete(p.births, b)
	}
	return nil
}
