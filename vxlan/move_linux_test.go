package vxlan

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// TestFormChanges: a network goes from one form to the other node by node, pair by
// pair, under load, and loses nothing; a frame for all arrives once at each step.
func TestFormChanges(t *testing.T) {
	for name, toClear := range map[string]bool{"to encrypted": false, "to plaintext": true} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, 3)
			mv := &move{w: w, toClear: toClear, moved: map[[2]*node]bool{}}
			for i, n := range w.nodes {
				mv.ends = append(mv.ends, n.attach(i+1))
			}
			mv.apply(w.nodes...)
			mv.load()
			for _, n := range w.nodes {
				mv.both = append(mv.both, n)
				mv.apply(n)
				mv.check("both forms on node " + n.name)
			}
			for _, from := range w.nodes {
				for _, to := range w.nodes {
					if from != to {
						mv.moved[[2]*node{from, to}] = true
						mv.apply(from)
						mv.check("from " + from.name + " to " + to.name)
					}
				}
			}
			for _, n := range w.nodes {
				mv.both = mv.both[1:]
				mv.apply(n)
				mv.check("one form on node " + n.name)
			}
			if r := mv.mesh.Stop(); r.Lost()+r.Duplicated+r.Corrupt+r.SendErrors != 0 {
				t.Errorf("%+v", r)
			} else {
				t.Logf("%d packets, none lost", r.Sent)
			}
		})
	}
}

// move is a network between two forms.
type move struct {
	w       *world
	toClear bool
	both    []*node           // have both forms
	moved   map[[2]*node]bool // from, to: sends in the new form
	ends    []member
	mesh    *netlab.Mesh
}

// apply writes what nodes send to whom and how, and brings their kernels there.
func (mv *move) apply(nodes ...*node) {
	mv.w.t.Helper()
	for _, n := range nodes {
		open := n.way(true)
		encrypted := n.way(false)
		s := &n.spec
		s.Encrypted, s.MTU, s.Other, s.Remotes = mv.toClear, 1430, nil, nil
		if slices.Contains(mv.both, n) || len(mv.moved) > 0 {
			s.Encrypted = !mv.toClear
		}
		for i, o := range mv.w.nodes {
			if o == n {
				continue
			}
			inClear := mv.moved[[2]*node{n, o}] == mv.toClear
			to := &encrypted
			if inClear {
				to = &open
			}
			vtep := o.way(inClear).Local
			to.Flood = append(to.Flood, vtep)
			s.Remotes = append(s.Remotes, Remote{
				MAC: mv.ends[i].Endpoint.MAC, Addrs: mv.ends[i].Remote.Addrs, VTEP: vtep, Other: inClear == s.Encrypted,
			})
		}
		main, other := &encrypted, &open
		if !s.Encrypted {
			main, other = other, main
		}
		s.Local, s.Flood = main.Local, main.Flood
		if slices.Contains(mv.both, n) {
			s.Other = other
		}
		n.sync()
	}
}

// way is where a node's device of a form sends from.
func (n *node) way(inClear bool) Way {
	if inClear {
		return Way{Local: n.host.V4()}
	}
	return Way{Local: n.secure.V6()}
}

func (mv *move) load() {
	var points []netlab.Point
	for _, e := range mv.ends {
		points = append(points, netlab.Point{Name: e.box.Name(), NS: e.box.NS(), Addr: e.Endpoint.Addrs[0].Addr()})
	}
	var err error
	mv.mesh, err = netlab.StartMesh(context.Background(), netlab.MeshOptions{Points: points, Rate: 500})
	ok(mv.w.t, err)
	mv.w.t.Cleanup(func() { mv.mesh.Stop() })
}

// check wants packets of every pair to go on, and ten frames for all to arrive ten
// times on each node and nowhere else, so no loop either.
func (mv *move) check(when string) {
	t := mv.w.t
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if err := mv.mesh.WaitReceived(ctx, 20); err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	marker := []byte("for all: " + when)
	from, others := mv.ends[0], mv.ends[1:]
	var at []*netlab.Capture
	for _, e := range mv.ends {
		at = append(at, capture(t, e.box, "eth0", netlab.ContainsMarker(marker)))
	}
	in, err := netlab.OpenInjector(from.box.NS())
	ok(t, err)
	defer func() { _ = in.Close() }()
	for range 10 {
		ok(t, in.Frame("eth0", ether([6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, from.Endpoint.MAC, 0x88b5, marker)))
	}
	for _, e := range others {
		pingBoth(t, from, e, 100) // behind them in every queue
	}
	for i, c := range at {
		if n := c.Stop().Matched; n != 10 { // its own on the sender
			t.Errorf("%s: %d of 10 frames for all on %s", when, n, mv.ends[i].box.Name())
		}
	}
}
