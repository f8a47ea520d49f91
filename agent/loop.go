package agent

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/events"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/clock"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// Timing of the loop.
const (
	// resync is how often the loop looks without being woken. What somebody
	// else deletes is repaired within it plus the time of one round.
	resync = time.Second
	// hurry is the interval while an attach waits for something that sends
	// no wake-up.
	hurry = 100 * time.Millisecond
	// breath and deepBreath bound the pause before a turn that messages, results
	// and gossip ask for. It is as long as the last turn took: what comes in
	// meanwhile is seen at once, and a node that is flooded, or too slow for
	// what comes in, spends half of a processor and not all of it.
	breath     = 5 * time.Millisecond
	deepBreath = 100 * time.Millisecond
	// roundTimeout bounds one round, so that a stuck driver does not take
	// the control socket with it for ever.
	roundTimeout = 20 * time.Second
	// grace is how long after a restart nothing is removed although no
	// other member has confirmed that this node knows all records.
	grace = 30 * time.Second
)

// gossip is the membership as the loop uses it; *membership.Cluster.
type gossip interface {
	Publish(n record.Node)
	Changes() <-chan struct{}
	Snapshot() membership.Snapshot
	Leave(ctx context.Context) error
}

// guard is the secure namespace as the loop uses it; *secure.Namespace.
type guard interface {
	Set(ctx context.Context, spec secure.Spec) error
	Verify(ctx context.Context) error
	Remove() error
	Close() error
}

// overlay makes the overlay networks; *vxlan.Programmer.
type overlay interface {
	Sync(ctx context.Context, want []vxlan.Spec) ([]vxlan.Op, error)
	Observe(ctx context.Context, want []vxlan.Spec) (vxlan.Observed, error)
	Remove(ctx context.Context) error
	Close() error
}

// loop owns the data plane and everything that is known about it. Only the
// goroutine in run touches its fields; others reach it through calls.
type loop struct {
	cfg      config.Config
	version  string
	started  time.Time
	here     config.Config // cfg, with the networks that this node carries
	identity keystore.Identity
	files    files
	log      *slog.Logger
	now      func() time.Time // of the system; what is only compared with itself goes by its monotonic reading
	clock    *clock.Clock     // by which certificates are judged
	progress func(Step)

	gossip     gossip
	floors     floors
	departs    departer
	guard      guard
	overlay    overlay
	exits      exits
	host       host
	tunnels    *drivers
	facts      TunnelFacts  // as the last look at the drivers found them
	readAt     time.Time    // when that was
	target     item.Target  // the cluster's epoch
	unable     string       // why this node cannot follow it; empty: it can
	former     secure.State // what the secure namespace had at the start
	canIssue   bool         // this node holds an issuer key that is in force
	issuerKey  keys.IssuerPublic
	rooted     rooted
	definer    definer
	adopted    bool   // routes of a predecessor are known
	toldDriver string // the driver that was logged last
	slower     error  // what it has to do without
	rot        rotation
	unproved   time.Duration // rotate.Timing.Unproved
	events     *events.Log   // nil: not kept
	ns         namespaces

	closers []func() error

	calls   chan call
	posts   chan func(*loop) // results of workers
	ended   chan struct{}    // closed when the loop has ended
	workers sync.WaitGroup
	soon    bool      // something came in that a turn has to see
	turned  time.Time // when the last turn ended
	rested  time.Time // until then turns that can wait do

	stopping    bool  // Down has removed everything
	downError   error // what Down could not remove
	wipes       bool  // the node has left, and its keys are to go
	guardFailed bool  // the secure namespace is not as wanted, as a whole
	routeFailed map[secure.Route]bool

	attachments []Attachment
	pending     []*pendingAttach
	claims      claims
	previous    record.Node // what was published last
	forms       map[string]Forms
	paths       map[ids.NodeID]*watchedPath
	own         []OwnAddr // last known, kept over a moment without addresses
	restored    applied   // of the previous agent
	holdUntil   time.Time // zero: nothing is held any more
	written     applied   // what applied.json says

	lastIn  Input // of the last turn
	out     Output
	synced  made[[]vxlan.Spec] // what the overlay was made to be last
	guarded made[secure.Spec]  // and the secure namespace
	// verifiedAt is when the secure namespace was last found as it was set.
	verifiedAt time.Time
	failures   []failure
	reported   map[api.Problem]bool // in the log
	tunnelsUp  map[ids.NodeID]bool
	revoked    map[ids.NodeID]bool   // nodes that were thrown out, as noted
	left       map[ids.NodeID]bool   // nodes that have left, as noted
	alarms     map[alarm]api.Problem // as noted
	standings  map[ids.NodeID]known
	signs      signs
	toldClock  string // the problem with the clock that was told last

	revokedIssuers map[keys.IssuerPublic]bool // as noted
	refused        []api.Problem              // what is wrong with the file on the disk
	contradictions []api.Problem              // between the file and the cluster
	round          ids.Revision
	ready          chan struct{}
	isReady        bool
}

// call is a function that runs in the loop's goroutine between two rounds.
type call struct {
	run  func(ctx context.Context, l *loop)
	done chan struct{}
}

// run is the loop. It returns nil after Down and ctx's error otherwise.
func (l *loop) run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer l.wipe()
	defer l.workers.Wait()
	defer close(l.ended)
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case c := <-l.calls:
			// A read needs no round; a change makes its own.
			c.run(ctx, l)
			close(c.done)
			if l.stopping {
				return nil
			}
			if len(l.pending) > 0 {
				// Counted from the last turn: calls without end must not put
				// the next one off without end.
				timer.Reset(l.turned.Add(hurry).Sub(l.now()))
			}
			if !l.soon || l.rests(timer) {
				continue
			}
		case result := <-l.posts:
			result(l)
			if l.rests(timer) {
				continue
			}
		case <-l.gossip.Changes():
			if l.rests(timer) {
				continue
			}
		case <-timer.C:
		}
		l.drain()
		began := l.now()
		next := l.turn(ctx)
		l.turned = l.now()
		l.rested = l.turned.Add(min(max(l.turned.Sub(began), breath), deepBreath))
		if len(l.pending) > 0 {
			next = min(next, hurry)
		}
		timer.Reset(next)
	}
}

// rests reports whether the next turn has to wait, and sets the timer for it.
func (l *loop) rests(timer *time.Timer) bool {
	wait := l.rested.Sub(l.now())
	if wait <= 0 {
		return false
	}
	timer.Reset(wait)
	return true
}

// drain takes up what else has come in, so that one turn sees all of it.
func (l *loop) drain() {
	l.soon = false
	for {
		select {
		case result := <-l.posts:
			result(l)
		default:
			return
		}
	}
}
