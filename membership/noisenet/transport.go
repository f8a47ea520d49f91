package noisenet

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"golang.org/x/time/rate"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys"
)

const (
	packetBacklog = 256 // packets that memberlist has not taken yet; more are dropped
	streamBacklog = 16
	bindTries     = 10 // to find a port that is free for both TCP and UDP
	janitorEvery  = time.Second
	maxLogLines   = 10 // refusals logged per second, all sources together
	unkeyedRate   = 5  // handshakes without access key per second, all sources together
)

// Transport is a memberlist transport inside Noise, with a control channel to
// each peer beside it. Use: New, Open, Run in a goroutine, then memberlist.
//
// All methods may be called from any goroutine after Open has returned.
//
// Goroutines, all ended by Shutdown: accept loop, packet loop, janitor, one per
// accepted connection, one or two per control stream, one per dial, one per
// request at work. Locks: mu guards closed, peers and conns; sessMu guards
// sess. Neither is held during I/O or while taking the other, nor while calling
// out to Directory, Handler, Admission or Refuse.
type Transport struct {
	cfg     Config
	party   *party // set by Open
	packets chan *memberlist.Packet
	streams chan net.Conn
	gate    *gate
	accepts *buckets // handshakes
	hints   *buckets // HINTs sent
	refused *buckets // lines logged about refusals
	lines   *buckets // the same, all sources together

	ctx    context.Context // ends with Shutdown
	cancel context.CancelFunc
	wg     sync.WaitGroup

	renewed atomic.Pointer[keys.Credential] // nil until SetCredential
	access  atomic.Pointer[[]accessEntry]   // nil until SetAccess
	unkeyed *rate.Limiter                   // handshakes without access key

	listener *net.TCPListener // set by Open
	socket   *net.UDPConn

	mu     sync.Mutex
	closed bool
	peers  map[ids.NodeID]*peerState
	inner  map[netip.Addr]ids.NodeID // virtual addresses of peers
	conns  map[net.Conn]ids.NodeID   // zero until authenticated

	sessMu sync.Mutex
	sess   *sessions
}

var _ memberlist.NodeAwareTransport = (*Transport)(nil)

// New prepares a transport. It does no I/O and starts nothing.
func New(cfg Config) *Transport {
	cfg = cfg.withDefaults()
	ctx, cancel := context.WithCancel(context.Background())
	return &Transport{
		cfg:     cfg,
		packets: make(chan *memberlist.Packet, packetBacklog),
		streams: make(chan net.Conn, streamBacklog),
		gate:    newGate(cfg.limits.unauthenticated, cfg.limits.perSource),
		accepts: newBuckets(cfg.limits.bucketRate, cfg.limits.bucketBurst),
		hints:   newBuckets(1, 1),
		refused: newBuckets(1, 1),
		lines:   newBuckets(maxLogLines, maxLogLines),
		unkeyed: rate.NewLimiter(unkeyedRate, unkeyedRate),
		ctx:     ctx,
		cancel:  cancel,
		peers:   make(map[ids.NodeID]*peerState),
		inner:   make(map[netip.Addr]ids.NodeID),
		conns:   make(map[net.Conn]ids.NodeID),
		sess:    newSessions(cfg.Node, cfg.limits, cfg.random),
	}
}

// Open binds TCP and UDP on one port of Config.Bind.
func (t *Transport) Open() error {
	if t.ctx.Err() != nil {
		return fmt.Errorf("open transport: %w", ErrClosed)
	}
	var err error
	for range bindTries {
		if err = t.bind(); err == nil || t.cfg.Bind.Port() != 0 {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("open transport on %s: %w", t.cfg.Bind, err)
	}
	var boot [8]byte
	if _, err := io.ReadFull(t.cfg.random, boot[:]); err != nil {
		t.closeSockets()
		return fmt.Errorf("open transport: %w", err)
	}
	p := &party{
		node:       t.cfg.Node,
		trust:      t.cfg.Trust,
		static:     t.cfg.Noise,
		credential: t.cfg.Credential,
		renewed:    t.renewed.Load,
		access:     t.cfg.Access,
		ring:       t.accessEntries,
		unkeyed:    t.unkeyed.Allow,
		port:       t.Port(),
		boot:       max(binary.BigEndian.Uint64(boot[:]), 1),
		refuse:     t.cfg.Refuse,
		clock:      t.cfg.Clock,
		random:     t.cfg.random,
		versionMax: t.cfg.versionMax,
		floor:      t.cfg.Floor,
		hybridOnly: t.cfg.RequireHybrid,
		kem:        newKEM(),
	}
	if err := p.prepare(); err != nil {
		t.closeSockets()
		return fmt.Errorf("open transport: %w", err)
	}
	t.party = p
	return nil
}

func (t *Transport) bind() error {
	lc := net.ListenConfig{KeepAliveConfig: keepAlive()}
	l, err := lc.Listen(t.ctx, "tcp", t.cfg.Bind.String())
	if err != nil {
		return err
	}
	t.listener = l.(*net.TCPListener)
	at := netip.AddrPortFrom(t.cfg.Bind.Addr(), t.Port())
	t.socket, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
	if err != nil {
		_ = l.Close()
		return err
	}
	return nil
}

// SetCredential replaces Config.Credential in handshakes that begin from now on:
// a renewed certificate for the same keys, which the caller has verified.
// Streams and sessions that are open go on as they are.
func (t *Transport) SetCredential(c keys.Credential) { t.renewed.Store(&c) }

// keepAlive finds a peer that vanished within 25 s, long before the kernel's
// default of two hours.
func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3}
}

// Port returns the underlay port, once Open has succeeded.
func (t *Transport) Port() uint16 {
	if t.listener == nil {
		return 0
	}
	return t.listener.Addr().(*net.TCPAddr).AddrPort().Port()
}

// Run serves until ctx ends or Shutdown is called, and returns after every
// goroutine of the transport has ended. Open must have succeeded.
func (t *Transport) Run(ctx context.Context) error {
	if t.party == nil {
		return errors.New("run transport: it is not open")
	}
	started := t.spawn(t.acceptLoop) && t.spawn(t.packetLoop) && t.spawn(t.janitor)
	if started {
		select {
		case <-ctx.Done():
		case <-t.ctx.Done():
		}
	}
	return t.Shutdown()
}

// Shutdown closes every socket and waits until every goroutine has ended. It
// may be called more than once, and before Open.
func (t *Transport) Shutdown() error {
	t.mu.Lock()
	t.closed = true
	conns := make([]net.Conn, 0, len(t.conns))
	for c := range t.conns {
		conns = append(conns, c)
	}
	t.mu.Unlock()
	t.cancel()
	t.closeSockets()
	for _, c := range conns {
		_ = c.Close()
	}
	t.wg.Wait()
	return nil
}

func (t *Transport) closeSockets() {
	if t.listener != nil {
		_ = t.listener.Close()
	}
	if t.socket != nil {
		_ = t.socket.Close()
	}
}

// spawn starts f in a goroutine that Shutdown waits for; false after Shutdown.
func (t *Transport) spawn(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.wg.Go(f)
	return true
}

// track makes Shutdown close c; false (and c closed) after Shutdown.
func (t *Transport) track(c net.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		_ = c.Close()
		return false
	}
	t.conns[c] = ids.NodeID{}
	return true
}

func (t *Transport) untrack(c net.Conn) {
	_ = c.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, c)
}

// janitor lets go of what is over.
func (t *Transport) janitor() {
	tick := time.NewTicker(janitorEvery)
	defer tick.Stop()
	for {
		select {
		case now := <-tick.C:
			t.sessMu.Lock()
			t.sess.expire(now)
			t.sessMu.Unlock()
			t.closeIdle(now)
		case <-t.ctx.Done():
			return
		}
	}
}

// closeIdle closes control streams that nobody uses. The accepting side waits
// half as long again, so that a request rarely meets a stream being closed.
func (t *Transport) closeIdle(now time.Time) {
	t.mu.Lock()
	var all []*control
	for _, p := range t.peers {
		all = append(all, p.controls...)
	}
	t.mu.Unlock()
	for _, c := range all {
		limit := t.cfg.limits.controlIdle
		if !c.dialled {
			limit += limit / 2
		}
		if c.idle(now, limit) {
			c.close()
		}
	}
}

// logRefused reports a refused handshake: one line per source and second, and
// a few per second in all, so that a flood does not become a flood of lines.
func (t *Transport) logRefused(from netip.AddrPort, err error) {
	if errors.Is(err, ErrRefused) {
		// A revoked node may knock for years, and its revocation was logged.
		t.cfg.Log.Debug("handshake refused", logkey.Addr, from, logkey.Reason, err)
		return
	}
	now := time.Now()
	if t.ctx.Err() != nil || !t.refused.allow(now, sourceOf(from.Addr())) || !t.lines.allow(now, netip.Prefix{}) {
		return
	}
	t.cfg.Log.Warn("handshake refused", logkey.Addr, from, logkey.Reason, err)
}

// handle calls the Handler.
func (t *Transport) handle(ctx context.Context, from Peer, req []byte) ([]byte, error) {
	if t.cfg.Handler == nil {
		return nil, errors.New("node answers no requests")
	}
	return t.cfg.Handler(ctx, from, req)
}
