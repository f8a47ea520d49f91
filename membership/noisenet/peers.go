package noisenet

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

const (
	maxSeen     = 4 // addresses remembered per peer
	maxDialed   = 8 // addresses tried per dial
	maxControls = 4 // control streams kept per peer, either direction
)

// peerState is what Transport.mu guards about one authenticated peer.
type peerState struct {
	peer     Peer             // of the last handshake; Addr as observed then
	boot     uint64           // its process
	seen     []netip.AddrPort // newest first
	controls []*control       // newest last
	accepted int              // streams it has open to us
	dial     *dialing         // the one dial under way
}

// authenticated makes a secureConn of a connection whose handshake is done.
// The address is the one dialled, or the source IP with the port that the peer
// announced: a member can make us dial itself and nobody else.
func (t *Transport) authenticated(raw net.Conn, e *established, addr netip.AddrPort) (*secureConn, error) {
	peer := Peer{ID: e.cert.ID(), Cert: e.cert, Credential: e.credential, Addr: addr, Version: e.version, Hybrid: e.hybrid()}
	conn, err := newSecureConn(raw, e, peer)
	if err != nil {
		return nil, err
	}
	stale := t.learn(raw, e.boot, peer)
	// Asked again now that Drop can find the connection: a node revoked while
	// its handshake was under way is caught here or there.
	if t.cfg.Refuse != nil && t.cfg.Refuse(peer.Cert, peer.Credential) {
		t.Drop(peer.ID)
		return nil, fmt.Errorf("check peer %s: %w", peer.ID, ErrRefused)
	}
	// So is one whose version the cluster stopped to allow meanwhile.
	if least, err := t.party.least(); err != nil || peer.Version < least {
		t.Drop(peer.ID)
		return nil, fmt.Errorf("check peer %s: it chose version %d: %w", peer.ID, peer.Version, ErrFloor)
	}
	for _, c := range stale {
		c.close()
	}
	t.sessMu.Lock()
	t.sess.reachable(peer.ID, e.boot)
	t.sessMu.Unlock()
	return conn, nil
}

// learn records what an authenticated handshake proved and returns the streams
// of the peer's previous process, which are dead or will be.
func (t *Transport) learn(raw net.Conn, boot uint64, peer Peer) []*control {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, open := t.conns[raw]; open {
		t.conns[raw] = peer.ID
	}
	addr := peer.Addr
	p := t.peerState(peer.ID)
	p.peer = peer
	p.seen = slices.DeleteFunc(p.seen, func(a netip.AddrPort) bool { return a == addr })
	p.seen = slices.Insert(p.seen, 0, addr)
	p.seen = p.seen[:min(len(p.seen), maxSeen)]
	var stale []*control
	if p.boot != 0 && p.boot != boot {
		stale = slices.Clone(p.controls)
	}
	p.boot = boot
	return stale
}

// peerState returns or makes the state of a peer; mu is held.
func (t *Transport) peerState(id ids.NodeID) *peerState {
	p := t.peers[id]
	if p == nil {
		p = &peerState{}
		t.peers[id] = p
		t.inner[id.InnerAddr()] = id
	}
	return p
}

// admit counts a stream that a peer opened; false when it has too many.
func (t *Transport) admit(id ids.NodeID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peerState(id)
	if p.accepted >= t.cfg.limits.streamsPerPeer {
		return false
	}
	p.accepted++
	return true
}

func (t *Transport) release(id ids.NodeID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.peers[id]; p != nil && p.accepted > 0 {
		p.accepted--
	}
}

// addControl puts a stream into service and closes the oldest if there are too
// many.
func (t *Transport) addControl(c *control) {
	t.mu.Lock()
	p := t.peerState(c.conn.peer.ID)
	p.controls = append(p.controls, c)
	var extra *control
	if len(p.controls) > maxControls {
		extra = p.controls[0]
		p.controls = slices.Delete(p.controls, 0, 1)
	}
	t.mu.Unlock()
	if extra != nil {
		extra.close()
	}
}

func (t *Transport) removeControl(c *control) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.peers[c.conn.peer.ID]; p != nil {
		p.controls = slices.DeleteFunc(p.controls, func(o *control) bool { return o == c })
	}
}

// addresses returns where to dial a node, best guess first: the address of the
// last handshake, then its signed record, then others seen.
func (t *Transport) addresses(id ids.NodeID) []netip.AddrPort {
	t.mu.Lock()
	var seen []netip.AddrPort
	if p := t.peers[id]; p != nil {
		seen = slices.Clone(p.seen)
	}
	t.mu.Unlock()
	var all []netip.AddrPort
	if len(seen) > 0 {
		all = append(all, seen[0])
	}
	if t.cfg.Directory != nil {
		all = append(all, t.cfg.Directory.Underlay(id)...)
	}
	all = append(all, seen...)
	var out []netip.AddrPort
	for _, a := range all {
		a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
		if a.IsValid() && a.Port() != 0 && !slices.Contains(out, a) && len(out) < maxDialed {
			out = append(out, a)
		}
	}
	return out
}

// Peer returns what the last handshake with a node proved, with the address at
// which it is reached now; false if there was none since Open or Drop.
func (t *Transport) Peer(id ids.NodeID) (Peer, bool) {
	t.mu.Lock()
	p := t.peers[id]
	if p == nil || p.peer.ID.IsZero() {
		t.mu.Unlock()
		return Peer{}, false
	}
	peer := p.peer
	t.mu.Unlock()
	if a, ok := t.activeAddr(id); ok {
		peer.Addr = a
	}
	return peer, true
}

// Moved closes the streams that are bound to addresses which this node has no more: no
// packet of theirs comes back, and whoever waits for an answer on one would wait until
// its time is over. Datagrams need nothing: they come from the new address already.
func (t *Transport) Moved(gone []netip.Addr) {
	t.mu.Lock()
	var closing []net.Conn
	for c := range t.conns {
		if a, err := netip.ParseAddrPort(c.LocalAddr().String()); err == nil && slices.Contains(gone, a.Addr().Unmap()) {
			closing = append(closing, c)
		}
	}
	t.mu.Unlock()
	for _, c := range closing {
		_ = c.Close()
	}
}

// Drop closes all streams and sessions of a node and forgets its addresses. To
// keep it out, Config.Refuse must refuse it before Drop is called: Drop alone
// lets it come back.
func (t *Transport) Drop(id ids.NodeID) {
	t.mu.Lock()
	var closing []net.Conn
	for c, owner := range t.conns {
		if owner == id {
			closing = append(closing, c)
		}
	}
	if p := t.peers[id]; p != nil {
		p.seen, p.peer, p.boot = nil, Peer{}, 0
	}
	t.mu.Unlock()
	for _, c := range closing {
		_ = c.Close()
	}
	t.sessMu.Lock()
	t.sess.drop(id)
	t.sessMu.Unlock()
}
