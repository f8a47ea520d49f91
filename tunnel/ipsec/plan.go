package ipsec

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/xfrm"
)

// want is one peer of a device.
type want struct {
	peer      ids.NodeID
	inner     netip.Addr
	key       tunnel.PeerKey
	hasSecret bool
}

// place is where a device's associations and policies belong.
type place struct {
	self netip.Addr // this node's inner address
	ifID uint32
	port uint16 // at which this node receives ESP in UDP, and from which it sends
}

// states returns the two associations of a wanted peer. out has no SPI if
// there is to be none.
func (p place) states(w want) (in, out xfrm.State) {
	e, id := w.key.ESP, uint32(w.key.Key)
	in = xfrm.State{Src: e.Remote, Dst: e.Local, SPI: e.In, IfID: p.ifID, ReqID: id, From: w.inner, To: p.self}
	out = xfrm.State{Src: e.Local, Dst: e.Remote, SPI: e.Out, IfID: p.ifID, ReqID: id, From: p.self, To: w.inner}
	if e.InUDP {
		peer := cmp.Or(e.Port, p.port)
		in.Encap, out.Encap = xfrm.Encap{Src: peer, Dst: p.port}, xfrm.Encap{Src: p.port, Dst: peer}
	}
	return in, out
}

// have is what exists for a device, or for one peer of it.
type have struct {
	policies []xfrm.Listed
	states   map[xfrm.Name]xfrm.State
	// used are associations that have been installed once, whether they still
	// exist or not.
	used map[use]bool
}

// of sorts what exists for a device to its peers.
func (h have) of(p place) map[netip.Addr]have {
	out := map[netip.Addr]have{}
	at := func(peer netip.Addr) have {
		if one, ok := out[peer]; ok {
			return one
		}
		return have{states: map[xfrm.Name]xfrm.State{}, used: h.used}
	}
	for _, l := range h.policies {
		peer, dir := p.peerOf(l.From, l.To)
		if one := at(peer); dir == l.Dir {
			one.policies = append(one.policies, l)
			out[peer] = one
		}
	}
	for n, s := range h.states {
		peer, _ := p.peerOf(s.From, s.To)
		one := at(peer)
		one.states[n] = s
		out[peer] = one
	}
	return out
}

// use names an association for ever: its key depends on nothing else.
type use struct {
	key keys.KeyID
	spi ids.SPI
	dir xfrm.Dir
}

// holds reports whether exactly s exists.
func (h have) holds(s xfrm.State) bool {
	found, ok := h.states[s.Name()]
	return ok && found == s
}

// policy returns a peer's policy of a direction, if there is one.
func (h have) policy(d xfrm.Dir) (xfrm.Listed, bool) {
	for _, l := range h.policies {
		if l.Dir == d {
			return l, true
		}
	}
	return xfrm.Listed{}, false
}

// action is what a step does.
type action string

const (
	addState     action = "add association"
	deleteState  action = "delete association"
	setPolicy    action = "set policy"
	deletePolicy action = "delete policy"
)

// step is one change. Steps of one peer depend on each other in their order.
type step struct {
	do     action
	peer   ids.NodeID // zero: what nobody wants
	dir    xfrm.Dir
	state  xfrm.State  // of addState and deleteState
	policy xfrm.Policy // of setPolicy and deletePolicy
}

// plan returns the steps that make have match wants, and what cannot be done.
// What is right does not appear in it.
//
// What nobody wants goes first, so that an inner address goes straight from
// one peer to another. Then, peer by peer, receiving comes before sending:
// nobody is told of an association that does not receive yet. A peer's old
// associations go last, sending before receiving.
func plan(p place, wants []want, h have) ([]step, []error) {
	var steps []step
	var errs []error
	peers := h.of(p)
	wanted := map[netip.Addr]bool{}
	for _, w := range wants {
		wanted[w.inner] = true
	}
	for _, peer := range slices.SortedFunc(maps.Keys(peers), netip.Addr.Compare) {
		if !wanted[peer] {
			steps = append(steps, peers[peer].remove(p, nil)...)
		}
	}
	for _, w := range wants {
		one := peers[w.inner]
		one.used = h.used
		s, err := one.pair(p, w)
		steps = append(steps, s...)
		if err != nil {
			errs = append(errs, &tunnel.PeerError{Peer: w.peer, Err: err})
		}
	}
	return steps, errs
}

// pair returns the steps for one peer. What is installed for it under another
// key or with other addresses goes away in any case, also if nothing can take
// its place: the pair has moved on, and is about to agree anew.
func (h have) pair(p place, w want) ([]step, error) {
	in, out := p.states(w)
	var steps []step
	var err error
	keep := map[xfrm.Dir]xfrm.Name{}
	for _, half := range []struct {
		xfrm.State
		dir xfrm.Dir
	}{{in, xfrm.In}, {out, xfrm.Out}} {
		if half.SPI == 0 || (err != nil && !h.holds(half.State)) {
			continue // without the receiving half there is to be no sending half
		}
		more, ok := h.install(half.State, half.dir, w)
		if !ok {
			err = tunnel.ErrSecretGone
			continue
		}
		steps, keep[half.dir] = append(steps, more...), half.Name()
	}
	return append(steps, h.remove(p, keep)...), err
}

// install returns the steps that make one association and its policy. It
// reports false if the association is missing and cannot be made.
func (h have) install(s xfrm.State, d xfrm.Dir, w want) ([]step, bool) {
	var steps []step
	if !h.holds(s) {
		// Never a second time: the sequence numbers would begin again. On the
		// sending side the peer takes them for replays, and a pair of key and
		// nonce could come twice; on the receiving side what was recorded
		// before is accepted once more.
		if !w.hasSecret || h.used[use{w.key.Key, s.SPI, d}] {
			return nil, false
		}
		if old, taken := h.states[s.Name()]; taken {
			steps = append(steps, step{do: deleteState, peer: w.peer, dir: d, state: old})
		}
		steps = append(steps, step{do: addState, peer: w.peer, dir: d, state: s})
	}
	found, ok := h.policy(d)
	if !ok || !found.Exact || found.Policy != s.Policy(d) {
		steps = append(steps, step{do: setPolicy, peer: w.peer, dir: d, policy: s.Policy(d)})
	}
	return steps, true
}

// remove returns the steps that take away a peer's policies and associations,
// except the kept association of each direction and its policy: sending before
// receiving, a policy before its association, so that at no time a policy asks
// for what is gone.
func (h have) remove(p place, keep map[xfrm.Dir]xfrm.Name) []step {
	var steps []step
	for _, d := range []xfrm.Dir{xfrm.Out, xfrm.In} {
		kept, keeps := keep[d]
		if found, ok := h.policy(d); ok && !keeps {
			steps = append(steps, step{do: deletePolicy, dir: d, policy: found.Policy})
		}
		for _, n := range inOrder(h.states) {
			_, dir := p.peerOf(h.states[n].From, h.states[n].To)
			if dir == d && (!keeps || n != kept) {
				steps = append(steps, step{do: deleteState, dir: d, state: h.states[n]})
			}
		}
	}
	return steps
}

// peerOf tells by its inner addresses whose an association or policy of this
// node is, and its direction.
func (p place) peerOf(from, to netip.Addr) (netip.Addr, xfrm.Dir) {
	if from == p.self {
		return to, xfrm.Out
	}
	return from, xfrm.In
}

func inOrder(states map[xfrm.Name]xfrm.State) []xfrm.Name {
	return slices.SortedFunc(maps.Keys(states), func(a, b xfrm.Name) int {
		return cmp.Or(a.Dst.Compare(b.Dst), cmp.Compare(a.SPI, b.SPI))
	})
}

// String describes a step for the log: numbers that are not secret.
func (s step) String() string {
	if s.do == addState || s.do == deleteState {
		return fmt.Sprintf("%s to %s, request %08x", s.state.SPI, s.state.Dst, s.state.ReqID)
	}
	return fmt.Sprintf("%s to %s", s.policy.From, s.policy.To)
}
