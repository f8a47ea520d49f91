package membership

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// Errors of RaiseFloor and SetFloor, besides ErrNotRunning, ErrNotIssuer,
// ErrIssuerRevoked and those of item.Verify.
var (
	// ErrFloorAhead: this build does not speak the version, so the node that
	// raises the floor would be the first to be shut out.
	ErrFloorAhead = errors.New("protocol floor is above what this program speaks")
	// ErrFloorOld: the cluster has a newer floor than the one that was given.
	ErrFloorOld = errors.New("cluster has a newer protocol floor")
)

// floor is asked by the transport before each handshake.
func (c *Cluster) floor() uint8 { return c.view.Load().cluster.Floor().Min }

// RaiseFloor makes least the lowest protocol version that members speak with
// each other, and returns the floor when this node's Snapshot shows it. A floor
// that is as high already is the answer. Only a node with an issuer key raises
// it, on the word of its own operator; nobody lowers it but the root (SetFloor).
func (c *Cluster) RaiseFloor(_ context.Context, least uint8) (item.Floor, error) {
	f, err := c.raiseFloor(c.now(), least)
	if err != nil {
		return item.Floor{}, fmt.Errorf("raise protocol floor to %d: %w", least, err)
	}
	return f, nil
}

func (c *Cluster) raiseFloor(now time.Time, least uint8) (item.Floor, error) {
	switch {
	case !c.running.Load():
		return item.Floor{}, ErrNotRunning
	case least > noisenet.VersionMax:
		return item.Floor{}, fmt.Errorf("%w: %d", ErrFloorAhead, noisenet.VersionMax)
	}
	// Held as for targets, from the look at the floor to its change.
	c.rotating.Lock()
	defer c.rotating.Unlock()
	v := c.view.Load()
	if have := v.cluster.Floor(); have.Min >= least {
		return have, nil
	}
	signer := c.signer()
	switch {
	case c.opts.Signer == nil:
		return item.Floor{}, ErrNotIssuer
	case signer == nil:
		return item.Floor{}, ErrIssuerRevoked
	}
	it, err := v.cluster.SignFloor(now, c.opts.Identity.Trust, signer, least)
	if err != nil {
		return item.Floor{}, err
	}
	if err := c.items.merge([]*item.Item{it}, true); err != nil {
		return item.Floor{}, err
	}
	return c.view.Load().cluster.Floor(), nil
}

// SetFloor takes in a floor that the root has signed (item.FloorContent), on
// any node: also on one that the present floor keeps from talking to others.
func (c *Cluster) SetFloor(raw []byte) (item.Floor, error) {
	f, err := c.setFloor(c.now(), raw)
	if err != nil {
		return item.Floor{}, fmt.Errorf("set protocol floor: %w", err)
	}
	return f, nil
}

func (c *Cluster) setFloor(now time.Time, raw []byte) (item.Floor, error) {
	it, err := c.takeRoots(now, raw, item.KindFloor, ErrFloorOld)
	if err != nil {
		return item.Floor{}, err
	}
	f, _ := it.Floor()
	return f, nil
}

// takeRoots takes in an item of a kind that the root has signed. older is the error
// if this node's view does not show it then, because it has a newer one.
func (c *Cluster) takeRoots(now time.Time, raw []byte, kind item.Kind, older error) (*item.Item, error) {
	if !c.running.Load() {
		return nil, ErrNotRunning
	}
	it, err := item.Verify(c.opts.Identity.Trust, now, raw)
	if err != nil {
		return nil, err
	}
	if it.Slot.Kind != kind || !it.Root {
		return nil, fmt.Errorf("%w: it is a %s, and the root's %s is wanted", item.ErrMalformed, it.Slot.Kind, kind)
	}
	if err := c.items.merge([]*item.Item{it}, true); err != nil {
		return nil, err
	}
	if have := c.view.Load().cluster.Get(it.Slot); have == nil || have.Hash != it.Hash {
		return nil, older
	}
	return it, nil
}

// dropBelow takes notice of a floor that has changed. Streams below it are closed
// when the view shows it (dropExpelled), because from then on the transport
// opens no more of them.
func (l *loop) dropBelow(was item.Floor) {
	is := l.items.Floor()
	if is.Min == was.Min {
		return
	}
	l.c.log.Info("cluster has a new protocol floor", logkey.Protocol, is.Min)
	for id := range l.peers {
		if p, ok := l.c.transport.Peer(id); ok && p.Version < is.Min {
			l.expelled = append(l.expelled, id)
		}
	}
}
