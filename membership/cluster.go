package membership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// Cluster is this node's membership. Its methods may be called from any
// goroutine.
type Cluster struct {
	opts Options
	self ids.NodeID

	issuer keys.IssuerPublic // of Options.Signer; zero without

	prof profile
	log  *slog.Logger

	view    atomic.Pointer[view] // written by the loop only
	changes chan struct{}        // capacity 1
	events  chan event           // from callbacks, which drop when it is full
	merges  chan mergeRequest    // from goroutines that wait for the answer
	hints   *memberlist.TransmitLimitedQueue
	serving chan struct{} // a token per control request being answered, but for PAIR and CLAIM
	turns   turns         // who has how many of them
	pairing chan struct{} // the same of those two
	pairs   turns

	items    items         // cluster items: the newest, and those on disk
	itemNews chan itemNews // from items to the loop
	beatNews chan beatNews // heartbeats, from jobs and requests to the loop
	departs  chan departure
	ended    chan struct{} // closed when the loop has ended
	rotating sync.Mutex    // held by the one request that makes a target; before items.mu
	running  atomic.Bool   // transport and gossip are there

	using   sync.Mutex               // held while the transport is given access keys; leaf
	inForce atomic.Pointer[[32]byte] // commitment of the access key in use; nil: not known

	pending   atomic.Pointer[record.Node] // newest content not yet published
	published chan struct{}               // capacity 1: look at pending
	renewed   chan keys.Credential        // from keepRenewed to the loop
	reissue   chan struct{}               // capacity 1: look whether the own issuer is revoked
	resolved  chan []netip.AddrPort       // from keepResolving to the loop

	newTransport func(noisenet.Config) transport // tests replace it
	transport    transport                       // set by Run before anything reads it

	mu     sync.Mutex // guards gossip and stop; leaf
	gossip *memberlist.Memberlist
	stop   context.CancelFunc // non-nil while Run runs
	ran    bool
}

// transport is what a cluster uses of noisenet.Transport.
type transport interface {
	memberlist.NodeAwareTransport
	control
	handshakes
	known
}

// handshakes is the part of it that is about identities and fresh secrets.
type handshakes interface {
	SetCredential(c keys.Credential)
	SetAccess(list []keys.AccessKey) error
	Agree(ctx context.Context, id ids.NodeID, req []byte) (noisenet.Agreed, error)
}

// known is the part of it about peers that have proved who they are.
type known interface {
	Peer(id ids.NodeID) (noisenet.Peer, bool)
	Drop(id ids.NodeID)
	Moved(gone []netip.Addr)
	Deliver(packet []byte, refused byte) error
}

// control is the part of it that memberlist does not know.
type control interface {
	Open() error
	Run(ctx context.Context) error
	Contact(ctx context.Context, addr netip.AddrPort) (noisenet.Peer, error)
	Call(ctx context.Context, id ids.NodeID, req []byte) ([]byte, error)
}

// Bounds on what waits and what runs at once.
const (
	maxEvents  = 1024 // events waiting; one that does not fit is made good by a later digest
	maxServing = 8    // control requests answered at once, PAIR and CLAIM apart
	maxPairing = 32   // PAIR and CLAIM requests answered at once

	maxServingPeer = 2 // of either, requests of one peer
)

// New checks the options. It does no I/O and starts no goroutine.
func New(o Options) (*Cluster, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Cluster{
		opts:         o,
		self:         o.Identity.ID,
		issuer:       item.IssuerOf(o.Signer),
		prof:         profiles[o.Profile],
		log:          o.Log,
		changes:      make(chan struct{}, 1),
		events:       make(chan event, maxEvents),
		merges:       make(chan mergeRequest),
		serving:      make(chan struct{}, maxServing),
		pairing:      make(chan struct{}, maxPairing),
		itemNews:     make(chan itemNews),
		beatNews:     make(chan beatNews),
		departs:      make(chan departure),
		ended:        make(chan struct{}),
		published:    make(chan struct{}, 1),
		renewed:      make(chan keys.Credential),
		reissue:      make(chan struct{}, 1),
		resolved:     make(chan []netip.AddrPort),
		newTransport: func(cfg noisenet.Config) transport { return noisenet.New(cfg) },
	}
	c.hints = &memberlist.TransmitLimitedQueue{
		RetransmitMult: 4,
		NumNodes:       func() int { return c.view.Load().alive },
	}
	c.items.c = c
	v := newView(c.self, record.Set{}, item.Set{}, nil)
	v.snap.Target = item.Target{} // what it is stands on the disk
	c.view.Store(v)
	return c, nil
}

// Run opens the control port and takes part in the cluster until ctx ends or
// Leave is called; then it returns nil. It does not tell the others: to them
// the node fails, and a restart finds its records still there. Run may be
// called once.
func (c *Cluster) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.mu.Lock()
	if c.ran {
		c.mu.Unlock()
		return errors.New("run cluster: it ran before")
	}
	c.ran, c.stop = true, func() { cancel(nil) }
	c.mu.Unlock()

	l := newLoop(c, c.restore(), c.items.restore())
	l.beats.restore(c.now(), c.items.storedBeats, &l.items)
	c.view.Store(newView(c.self, l.set, l.items, nil))
	wake(c.changes)
	c.transport = c.newTransport(c.transportConfig())
	if err := c.useAccess(c.now()); err != nil {
		return fmt.Errorf("use access keys: %w", err)
	}
	if err := c.transport.Open(); err != nil {
		return fmt.Errorf("open control port %s: %w", c.opts.Bind, err)
	}
	// The transport outlives memberlist, which closes it: its streams must
	// not break under memberlist's feet.
	netCtx, stopNet := context.WithCancel(context.WithoutCancel(ctx))
	defer stopNet()
	var wg sync.WaitGroup
	var netErr error
	wg.Go(func() {
		if netErr = c.transport.Run(netCtx); netErr != nil {
			cancel(netErr)
		}
	})
	err := c.runGossip(ctx, l)
	stopNet()
	wg.Wait()
	if err == nil && ctx.Err() != nil && netErr != nil && !errors.Is(netErr, context.Canceled) && !errors.Is(netErr, noisenet.ErrClosed) {
		err = fmt.Errorf("run control transport: %w", netErr)
	}
	return err
}

// runGossip runs memberlist, the loop and the writer of durable state until
// ctx ends, and leaves none of their goroutines behind.
func (c *Cluster) runGossip(ctx context.Context, l *loop) error {
	gossip, err := memberlist.Create(c.gossipConfig(relaying{c.transport, c}))
	if err != nil {
		close(c.ended)
		return errors.Join(fmt.Errorf("start gossip: %w", err), c.transport.Shutdown())
	}
	c.mu.Lock()
	c.gossip = gossip
	c.mu.Unlock()
	c.running.Store(true)

	var wg sync.WaitGroup
	wg.Go(func() { c.persist(ctx) })
	wg.Go(func() { c.keepRenewed(ctx) })
	wg.Go(func() { c.keepResolving(ctx) })
	l.run(ctx, gossip)
	c.running.Store(false)
	close(c.ended)

	c.mu.Lock()
	c.gossip, c.stop = nil, nil
	err = gossip.Shutdown()
	c.mu.Unlock()
	l.workers.Wait()
	wg.Wait()
	if err != nil {
		return fmt.Errorf("stop gossip: %w", err)
	}
	return nil
}

// now is the time by which things are dated and certificates judged. What only
// has to come later than something else goes by the system's monotonic clock.
func (c *Cluster) now() time.Time { return c.opts.Clock.Now() }

func (c *Cluster) transportConfig() noisenet.Config {
	id := c.opts.Identity
	return noisenet.Config{
		Node:       id.ID,
		Trust:      id.Trust,
		Noise:      id.Noise,
		Credential: id.Credential,
		Access:     id.Access,
		Bind:       c.opts.Bind,
		Directory:  directory{c},
		Admission:  c.admission(),
		Refuse:     c.refusePeer,
		Handler:    c.serve,
		Agree:      c.agreeHandler(),
		Log:        c.log,
		Clock:      c.opts.Clock,

		RequireHybrid: c.opts.RequireHybrid,
		Floor:         c.floor,
	}
}

// directory answers noisenet from the signed records.
type directory struct{ c *Cluster }

// Underlay implements noisenet.Directory.
func (d directory) Underlay(id ids.NodeID) []netip.AddrPort {
	it := d.c.view.Load().set.Get(id)
	if it == nil {
		return nil
	}
	out := make([]netip.AddrPort, len(it.Node.Underlay))
	for i, u := range it.Node.Underlay {
		out[i] = u.Control
	}
	return out
}

// Publish replaces what this node says about itself. ID and Seq of n are
// ignored. Content equal to what was published last, also before a restart,
// is not published again. It may be called before Run. Content that
// record.Node.Validate refuses in canonical form is logged and dropped.
func (c *Cluster) Publish(n record.Node) {
	n = n.Canonical()
	c.pending.Store(&n)
	wake(c.published)
}

// Changes wakes a reader after the Snapshot changed in anything but LastSeen
// and Addr. It holds one wake-up; several changes may be one.
func (c *Cluster) Changes() <-chan struct{} { return c.changes }

// Snapshot returns the cluster as this node knows it now.
func (c *Cluster) Snapshot() Snapshot { return c.view.Load().snap }

// leaveTimeout bounds Leave where ctx has no deadline.
const leaveTimeout = 5 * time.Second

// Leave tells the gossip of the others that this node goes away, and ends Run.
// The records stay with the others: that the node has left the cluster, for
// good, is for Depart to say. Without a running Run it does nothing.
func (c *Cluster) Leave(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stop == nil {
		return nil
	}
	defer c.stop()
	if c.gossip == nil {
		return nil
	}
	timeout := leaveTimeout
	if end, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(end))
	}
	if timeout <= 0 || ctx.Err() != nil {
		return nil // no time to tell anybody; they will notice
	}
	// The lock is held so that Run cannot shut memberlist down meanwhile,
	// which makes Leave panic.
	if err := c.gossip.Leave(timeout); err != nil {
		return fmt.Errorf("leave cluster: %w", err)
	}
	return nil
}

// wake sends to a channel of capacity 1 unless a wake-up waits there already.
func wake(ch chan<- struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
