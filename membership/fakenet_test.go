package membership

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// fakeNet connects fake transports in memory. It does what noisenet promises
// (peers are who they say, virtual addresses, control calls) and can break the
// network on purpose.
type fakeNet struct {
	mu     sync.Mutex
	byID   map[ids.NodeID]*fakeTransport
	byAddr map[netip.AddrPort]*fakeTransport
	broken func(from, to ids.NodeID) bool             // nothing passes
	drop   func(from, to ids.NodeID, b []byte) bool   // this packet is lost
	refuse func(from, to ids.NodeID, req []byte) bool // this request is answered by an error
	agreed atomic.Uint32                              // secrets made

	packets, bytes uint64               // sent, and how many bytes they had
	calls          map[byte]uint64      // requests answered, by kind
	callBytes      map[byte]uint64      // of them and their answers
	dropped        map[ids.NodeID]int   // calls of Drop, by the node that was dropped
	versions       map[ids.NodeID]uint8 // that a node speaks, if not the highest
}

func newFakeNet() *fakeNet {
	return &fakeNet{
		byID: make(map[ids.NodeID]*fakeTransport), byAddr: make(map[netip.AddrPort]*fakeTransport),
		calls: make(map[byte]uint64), callBytes: make(map[byte]uint64), dropped: make(map[ids.NodeID]int), versions: make(map[ids.NodeID]uint8),
	}
}

func (n *fakeNet) setBroken(f func(from, to ids.NodeID) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.broken = f
}

func (n *fakeNet) setDrop(f func(from, to ids.NodeID, b []byte) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.drop = f
}

func (n *fakeNet) setRefuse(f func(from, to ids.NodeID, req []byte) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.refuse = f
}

// refused reports whether a request fails.
func (n *fakeNet) refused(from, to ids.NodeID, req []byte) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.refuse != nil && n.refuse(from, to, req)
}

// count notes what a request cost.
func (n *fakeNet) count(req, resp []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.calls[req[0]]++
	n.callBytes[req[0]] += uint64(len(req) + len(resp))
}

// find returns the open transport of a node, unless the path is broken.
func (n *fakeNet) find(from, to ids.NodeID) (*fakeTransport, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	t := n.byID[to]
	if t == nil || n.broken != nil && n.broken(from, to) {
		return nil, noisenet.ErrUnreachable
	}
	switch {
	case refuses(n.byID[from], t):
		return nil, noisenet.ErrRefused
	case refuses(t, n.byID[from]):
		return nil, fmt.Errorf("%w: %w", noisenet.ErrRefused, noisenet.ErrTurnedAway)
	}
	return t, nil
}

// refuses asks as a transport does in a handshake. No lock of a cluster is
// taken.
func refuses(t, other *fakeTransport) bool {
	if t == nil || other == nil || t.cfg.Refuse == nil {
		return false
	}
	p := other.shown()
	return t.cfg.Refuse(p.Cert, p.Credential)
}

// shown is what a node shows of itself; the net's lock is held.
func (t *fakeTransport) shown() noisenet.Peer {
	p := noisenet.Peer{ID: t.cfg.Node, Credential: t.cfg.Credential, Addr: t.cfg.Bind, Version: noisenet.VersionMax}
	if v, ok := t.net.versions[t.cfg.Node]; ok {
		p.Version = v
	}
	p.Hybrid = p.Version >= 2
	// A transport gives no peer whose certificate does not parse.
	p.Cert, _ = keys.ParseCert(p.Credential.Cert)
	return p
}

func (n *fakeNet) lost(from, to ids.NodeID, b []byte) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.packets++
	n.bytes += uint64(len(b))
	return n.drop != nil && n.drop(from, to, b)
}

// transport returns a factory for Cluster.newTransport.
func (n *fakeNet) transport(cfg noisenet.Config) transport {
	return &fakeTransport{
		net:     n,
		cfg:     cfg,
		packets: make(chan *memberlist.Packet, 1024),
		streams: make(chan net.Conn, 64),
		closed:  make(chan struct{}),
	}
}

// fakeTransport is one node's side.
type fakeTransport struct {
	net     *fakeNet
	cfg     noisenet.Config
	packets chan *memberlist.Packet
	streams chan net.Conn
	once    sync.Once
	closed  chan struct{}
}

func (t *fakeTransport) Open() error {
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	if t.net.byID[t.cfg.Node] != nil {
		return errors.New("node is on the net already")
	}
	t.net.byID[t.cfg.Node] = t
	t.net.byAddr[t.cfg.Bind] = t
	return nil
}

func (t *fakeTransport) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
	case <-t.closed:
	}
	return t.Shutdown()
}

func (t *fakeTransport) Shutdown() error {
	t.once.Do(func() {
		close(t.closed)
		t.net.mu.Lock()
		defer t.net.mu.Unlock()
		if t.net.byID[t.cfg.Node] == t {
			delete(t.net.byID, t.cfg.Node)
			delete(t.net.byAddr, t.cfg.Bind)
		}
	})
	return nil
}

func (t *fakeTransport) peer() noisenet.Peer {
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	return t.shown()
}

// SetAccess does nothing: the fake net has no strangers.
func (t *fakeTransport) SetAccess([]keys.AccessKey) error { return nil }

// Moved does nothing: no stream of this network is bound to an address.
func (t *fakeTransport) Moved([]netip.Addr) {}

// Drop has nothing to close: each packet and each call asks anew whether it may
// pass.
func (t *fakeTransport) Drop(id ids.NodeID) {
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	t.net.dropped[id]++
}

func (t *fakeTransport) SetCredential(c keys.Credential) {
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	t.cfg.Credential = c
}

func (t *fakeTransport) Contact(_ context.Context, addr netip.AddrPort) (noisenet.Peer, error) {
	t.net.mu.Lock()
	other := t.net.byAddr[addr]
	t.net.mu.Unlock()
	switch other {
	case nil:
		return noisenet.Peer{}, noisenet.ErrUnreachable
	case t:
		return noisenet.Peer{}, noisenet.ErrSelf
	}
	if _, err := t.net.find(t.cfg.Node, other.cfg.Node); err != nil {
		return noisenet.Peer{}, err
	}
	return other.peer(), nil
}

func (t *fakeTransport) Call(ctx context.Context, id ids.NodeID, req []byte) ([]byte, error) {
	if len(req) > noisenet.MaxMessage {
		return nil, noisenet.ErrTooLarge
	}
	other, err := t.net.find(t.cfg.Node, id)
	if err != nil {
		return nil, err
	}
	if other.cfg.Handler == nil {
		return nil, &noisenet.RemoteError{Text: "node answers no requests"}
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-other.closed:
			cancel()
		case <-ctx.Done():
		}
	}()
	if t.net.refused(t.cfg.Node, id, req) {
		return nil, &noisenet.RemoteError{Text: "not this one"}
	}
	resp, err := other.cfg.Handler(ctx, t.peer(), append([]byte(nil), req...))
	if len(req) > 0 {
		t.net.count(req, resp)
	}
	if err != nil {
		return nil, &noisenet.RemoteError{Text: err.Error()}
	}
	if len(resp) > noisenet.MaxMessage {
		return nil, noisenet.ErrTooLarge
	}
	return resp, nil
}

// Peer answers about every node that is on the net.
func (t *fakeTransport) Peer(id ids.NodeID) (noisenet.Peer, bool) {
	t.net.mu.Lock()
	other := t.net.byID[id]
	t.net.mu.Unlock()
	if other == nil {
		return noisenet.Peer{}, false
	}
	return other.peer(), true
}

// Agree makes a secret out of what both sides said and a count.
func (t *fakeTransport) Agree(ctx context.Context, id ids.NodeID, req []byte) (noisenet.Agreed, error) {
	other, err := t.net.find(t.cfg.Node, id)
	if err != nil {
		return noisenet.Agreed{}, err
	}
	if other.cfg.Agree == nil {
		return noisenet.Agreed{}, &noisenet.RemoteError{Text: "node shares no secrets"}
	}
	resp, take, err := other.cfg.Agree(ctx, t.peer(), req)
	if err != nil {
		return noisenet.Agreed{}, &noisenet.RemoteError{Text: err.Error()}
	}
	sum := sha256.Sum256(fmt.Append(nil, t.net.agreed.Add(1), req, resp))
	secret, err := keys.TunnelSecretFromRaw32(sum[:])
	if err != nil {
		return noisenet.Agreed{}, err
	}
	if take != nil {
		take(secret.Clone())
	}
	return noisenet.Agreed{Response: resp, Secret: secret, Hybrid: true}, nil
}

func (t *fakeTransport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.cfg.Node.InnerAddr().AsSlice(), noisenet.VirtualPort, nil
}

func (t *fakeTransport) WriteTo([]byte, string) (time.Time, error) {
	return time.Time{}, noisenet.ErrNotVirtual
}

func (t *fakeTransport) WriteToAddress(b []byte, addr memberlist.Address) (time.Time, error) {
	now := time.Now()
	if len(b) > noisenet.PacketSize {
		return now, noisenet.ErrTooLarge
	}
	id, err := ids.ParseNodeID(addr.Name)
	if err != nil {
		return now, err
	}
	other, err := t.net.find(t.cfg.Node, id)
	if err != nil || t.net.lost(t.cfg.Node, id, b) {
		return now, nil // lost on the way
	}
	p := &memberlist.Packet{
		Buf:       append([]byte(nil), b...),
		From:      net.UDPAddrFromAddrPort(virtualAddr(t.cfg.Node)),
		Timestamp: now,
	}
	select {
	case other.packets <- p:
	default:
	}
	return now, nil
}

func (t *fakeTransport) Deliver(b []byte, _ byte) error {
	select {
	case t.packets <- &memberlist.Packet{Buf: append([]byte(nil), b...), From: net.UDPAddrFromAddrPort(virtualAddr(t.cfg.Node)), Timestamp: time.Now()}:
	default:
	}
	return nil
}

func (t *fakeTransport) PacketCh() <-chan *memberlist.Packet { return t.packets }
func (t *fakeTransport) StreamCh() <-chan net.Conn           { return t.streams }

func (t *fakeTransport) DialTimeout(string, time.Duration) (net.Conn, error) {
	return nil, noisenet.ErrNotVirtual
}

func (t *fakeTransport) DialAddressTimeout(addr memberlist.Address, _ time.Duration) (net.Conn, error) {
	id, err := ids.ParseNodeID(addr.Name)
	if err != nil {
		return nil, err
	}
	other, err := t.net.find(t.cfg.Node, id)
	if err != nil {
		return nil, err
	}
	near, far := newPipe(), newPipe()
	a, b := &fakeConn{in: near, out: far}, &fakeConn{in: far, out: near}
	select {
	case other.streams <- b:
		return a, nil
	case <-other.closed:
		return nil, noisenet.ErrUnreachable
	default:
		return nil, noisenet.ErrUnreachable
	}
}

// pipe is an unbounded byte queue; net.Pipe would block a writer until the
// reader comes, which a socket does not.
type pipe struct {
	mu       sync.Mutex
	cond     *sync.Cond
	buf      []byte
	closed   bool
	deadline time.Time
	timer    *time.Timer
}

func newPipe() *pipe {
	p := &pipe{}
	p.cond = sync.NewCond(&p.mu)
	return p
}

func (p *pipe) read(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.buf) == 0 {
		if p.closed {
			return 0, io.EOF
		}
		if !p.deadline.IsZero() && !time.Now().Before(p.deadline) {
			return 0, context.DeadlineExceeded
		}
		p.cond.Wait()
	}
	n := copy(b, p.buf)
	p.buf = p.buf[n:]
	return n, nil
}

func (p *pipe) write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return 0, io.ErrClosedPipe
	}
	p.buf = append(p.buf, b...)
	p.cond.Broadcast()
	return len(b), nil
}

func (p *pipe) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	if p.timer != nil {
		p.timer.Stop()
	}
	p.cond.Broadcast()
}

func (p *pipe) setDeadline(at time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deadline = at
	if p.timer != nil {
		p.timer.Stop()
	}
	if !at.IsZero() && !p.closed {
		p.timer = time.AfterFunc(time.Until(at), p.cond.Broadcast)
	}
}

type fakeConn struct{ in, out *pipe }

func (c *fakeConn) Read(b []byte) (int, error)  { return c.in.read(b) }
func (c *fakeConn) Write(b []byte) (int, error) { return c.out.write(b) }
func (c *fakeConn) Close() error {
	c.in.close()
	c.out.close()
	return nil
}
func (c *fakeConn) LocalAddr() net.Addr  { return &net.TCPAddr{} }
func (c *fakeConn) RemoteAddr() net.Addr { return &net.TCPAddr{} }
func (c *fakeConn) SetDeadline(t time.Time) error {
	c.in.setDeadline(t)
	return nil
}
func (c *fakeConn) SetReadDeadline(t time.Time) error  { return c.SetDeadline(t) }
func (c *fakeConn) SetWriteDeadline(t time.Time) error { return nil }
