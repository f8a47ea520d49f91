package membership

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// Errors of Rotate.
var (
	// ErrNoIssuer: no issuer could be asked, or none made a target. It is
	// wrapped by a *NoIssuerError.
	ErrNoIssuer = errors.New("no issuer made a new target epoch")
	// ErrTooSoon: the last target is too young. It is wrapped by a
	// *TooSoonError.
	ErrTooSoon = errors.New("the last rotation was too recent")
	// ErrDriver: the issuer does not know the driver.
	ErrDriver = errors.New("driver is not known")
	// ErrNotRunning: Run has not come so far, or has ended.
	ErrNotRunning = errors.New("membership is not running")

	errBehind = errors.New("issuer does not know the epoch to go on from")
	errSpent  = errors.New("epochs are used up")
)

// NoIssuerError says which issuers were asked, and what came of it.
type NoIssuerError struct {
	Tried []ids.NodeID
	Err   error // of the last one; nil if none was tried
}

// Error implements error.
func (e *NoIssuerError) Error() string {
	if len(e.Tried) == 0 {
		return ErrNoIssuer.Error() + ": no member has an issuer key"
	}
	names := make([]string, len(e.Tried))
	for i, id := range e.Tried {
		names[i] = id.String()
	}
	return fmt.Sprintf("%s: asked %s: %v", ErrNoIssuer, strings.Join(names, ", "), e.Err)
}

// Unwrap makes errors.Is find ErrNoIssuer and the last failure.
func (e *NoIssuerError) Unwrap() []error { return []error{ErrNoIssuer, e.Err} }

// TooSoonError says when to ask again.
type TooSoonError struct{ Wait time.Duration }

// Error implements error.
func (e *TooSoonError) Error() string {
	return fmt.Sprintf("%s: ask again in %s", ErrTooSoon, e.Wait.Round(time.Second))
}

// Unwrap makes errors.Is find ErrTooSoon.
func (e *TooSoonError) Unwrap() error { return ErrTooSoon }

// Rotate gives the cluster a target epoch above after and returns it, when this
// node's Snapshot shows it. If there is one already, that is the answer: two
// operators who rotate from one epoch at once make one new epoch, whose driver
// is the first one's. driver is one of item.DriverAuto and so on.
//
// This node signs the target if it has an issuer key, else it asks members that
// have one, live ones first. Errors: ErrNoIssuer, ErrTooSoon, ErrDriver,
// ErrNotRunning (wrapped).
func (c *Cluster) Rotate(ctx context.Context, after ids.Epoch, driver string, reason item.Reason) (item.Target, error) {
	t, err := c.rotate(ctx, after, driver, reason)
	if err != nil {
		return item.Target{}, fmt.Errorf("rotate after epoch %d: %w", after, err)
	}
	return t, nil
}

func (c *Cluster) rotate(ctx context.Context, after ids.Epoch, driver string, reason item.Reason) (item.Target, error) {
	if !c.running.Load() {
		return item.Target{}, ErrNotRunning
	}
	if t := c.Snapshot().Target; t.Epoch > after {
		return t, nil
	}
	failed := &NoIssuerError{}
	if c.signer() != nil {
		t, err := c.makeTarget(c.now(), after, driver, reason)
		if err == nil || decided(err) {
			return t, err
		}
		// Another issuer may have room on its disk, or a longer delegation.
		failed.Tried, failed.Err = append(failed.Tried, c.self), err
	}
	req, err := rotateRequest{After: after, Driver: driver, Reason: reason, Target: c.targetItem()}.encode()
	if err != nil {
		return item.Target{}, fmt.Errorf("%w: %w", ErrDriver, err)
	}
	for _, id := range issuers(c.Snapshot()) {
		t, err := c.askTarget(ctx, id, after, req)
		if err == nil || decided(err) {
			return t, err
		}
		failed.Tried, failed.Err = append(failed.Tried, id), err
	}
	return item.Target{}, failed
}

// decided reports whether err is the cluster's answer, which another issuer
// would repeat.
func decided(err error) bool { return errors.Is(err, ErrTooSoon) || errors.Is(err, ErrDriver) }

// targetItem returns the item of the target, or nil for the first epoch.
func (c *Cluster) targetItem() []byte {
	v := c.view.Load()
	if it := v.cluster.Get(item.TargetSlot()); it != nil {
		return it.Raw
	}
	return nil
}

// makeTarget signs the target that follows after, unless there is one. It is on
// this node's disk, twice, before anybody sees it: as signed, in the issuer's
// store, and in the set of items.
func (c *Cluster) makeTarget(now time.Time, after ids.Epoch, driver string, reason item.Reason) (item.Target, error) {
	// Held from the look at the target to its change, so that requests that
	// come at once make one.
	c.rotating.Lock()
	defer c.rotating.Unlock()
	last, signer := c.Snapshot().Target, c.signer()
	switch {
	case signer == nil:
		return item.Target{}, ErrIssuerRevoked // since the caller looked
	case last.Epoch > after:
		return last, nil
	case last.Epoch < after:
		return item.Target{}, fmt.Errorf("%w: it knows epoch %d", errBehind, last.Epoch)
	case last.Epoch == math.MaxUint32:
		return item.Target{}, errSpent
	case !item.KnownDriver(driver):
		return item.Target{}, fmt.Errorf("driver %q: %w", driver, ErrDriver)
	}
	if wait := c.tooSoon(now, last); wait > 0 {
		return item.Target{}, &TooSoonError{wait}
	}
	// Always the next one: an issuer's key in wrong hands cannot use epochs up
	// by a request.
	it, err := item.SignTarget(now, c.opts.Identity.Trust, signer,
		item.Target{Epoch: last.Epoch + 1, Driver: driver, Reason: reason, Created: now.UTC().Truncate(time.Second)})
	if err != nil {
		return item.Target{}, err
	}
	if err := c.items.merge([]*item.Item{it}, true); err != nil {
		return item.Target{}, err
	}
	return c.newTarget(after)
}

// tooSoon returns how long the next target has to wait. A last one from the
// future was made before the clock was put right, and holds up nothing.
func (c *Cluster) tooSoon(now time.Time, last item.Target) time.Duration {
	if last.Created.After(now.Add(c.opts.Identity.Trust.Leeway())) {
		return 0
	}
	return min(last.Created.Add(c.opts.RotateInterval).Sub(now), c.opts.RotateInterval)
}

// newTarget reads the target after a merge.
func (c *Cluster) newTarget(after ids.Epoch) (item.Target, error) {
	if t := c.Snapshot().Target; t.Epoch > after {
		return t, nil
	}
	return item.Target{}, errors.New("the new item is no higher target epoch")
}

// askTarget asks another node for a target above after, and verifies and merges
// what comes back like any other item.
func (c *Cluster) askTarget(ctx context.Context, id ids.NodeID, after ids.Epoch, req []byte) (item.Target, error) {
	b, err := c.call(ctx, id, req)
	if err != nil {
		return item.Target{}, err
	}
	raw, err := parseRotateAnswer(b)
	if err != nil {
		return item.Target{}, err
	}
	// Not by absorbItems: whoever asked is to learn that clocks differ.
	it, err := c.verifyItem(raw)
	if err != nil {
		return item.Target{}, err
	}
	if err := c.items.merge([]*item.Item{it}, false); err != nil {
		return item.Target{}, err
	}
	return c.newTarget(after)
}

// serveRotate makes a target for any member: who belongs to the cluster may have
// its keys changed. How often is this node's decision.
func (c *Cluster) serveRotate(from noisenet.Peer, req []byte) ([]byte, error) {
	m, err := parseRotateRequest(req)
	if err != nil {
		return nil, err
	}
	if from.Cert.Roles&keys.RoleObserver != 0 {
		// It has no keys in the rotation, so no reason to ask.
		c.log.Warn("observer asked for a new target epoch", logkey.Node, from.ID)
		return rotateRefusal(rotateFailed, 0), nil
	}
	if c.signer() == nil {
		return rotateRefusal(rotateNoIssuer, 0), nil
	}
	if m.Target != nil {
		// The asker may know a target that this node has missed.
		if err := c.absorbItems([][]byte{m.Target}); err != nil {
			return nil, errors.New("item refused")
		}
	}
	t, err := c.makeTarget(c.now(), m.After, m.Driver, m.Reason)
	var soon *TooSoonError
	switch {
	case errors.As(err, &soon):
		return rotateRefusal(rotateTooSoon, soon.Wait), nil
	case errors.Is(err, ErrDriver):
		return rotateRefusal(rotateDriver, 0), nil
	case errors.Is(err, errBehind):
		return rotateRefusal(rotateBehind, 0), nil
	case err != nil:
		c.log.Warn("target epoch that a member asked for is not made", logkey.Node, from.ID, logkey.Error, err)
		// The reason stays in this node's log.
		return rotateRefusal(rotateFailed, 0), nil
	}
	c.log.Info("member asked for a new target epoch", logkey.Node, from.ID, logkey.Epoch, t.Epoch, logkey.Reason, m.Reason.String())
	return rotateAnswer(c.targetItem()), nil
}
