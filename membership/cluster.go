package membership

import (
	"context"
	"sync/atomic"

	"github.com/secure-overlay/secure-overlay/membership/record"
)

// Cluster is this node's membership. Its methods may be called from any
// goroutine.
type Cluster struct {
	opts    Options
	view    atomic.Pointer[Snapshot]
	changes chan struct{}
}

// New checks the options. It does no I/O and starts no goroutine.
func New(o Options) (*Cluster, error) {
	o, err := o.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Cluster{opts: o, changes: make(chan struct{}, 1)}
	c.view.Store(&Snapshot{Self: o.Identity.ID})
	return c, nil
}

// Run opens the control port and takes part in the cluster until ctx ends or
// Leave is called; then it returns nil. It does not tell the others: to them
// the node fails, and a restart finds its records still there. Run may be
// called once.
func (c *Cluster) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Publish replaces what this node says about itself. ID and Seq of n are
// ignored. Content equal to what was published last, also before a restart,
// is not published again. It may be called before Run. Content that
// record.Node.Validate refuses in canonical form is logged and dropped.
func (c *Cluster) Publish(n record.Node) {}

// Changes wakes a reader after the Snapshot changed in anything but LastSeen
// and Addr. It holds one wake-up; several changes may be one.
func (c *Cluster) Changes() <-chan struct{} { return c.changes }

// Snapshot returns the cluster as this node knows it now.
func (c *Cluster) Snapshot() Snapshot { return *c.view.Load() }

// Leave tells the others that this node goes away, and ends Run. The records
// stay with the others. Without a running Run it does nothing.
func (c *Cluster) Leave(ctx context.Context) error { return nil }
