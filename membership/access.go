package membership

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// The cluster access key keeps strangers from beginning handshakes, and nothing
// else: who is a member rests on certificates. A revoked node knows it, so each
// revocation replaces it. An issuer makes the new key and an item that names it;
// the key itself is asked for on a stream, by members only.

// formerAccess is how long a former access key is accepted after the change: a
// node that missed it has so long to be back without a detour.
const formerAccess = 24 * time.Hour

// kindAccess asks for the access key with a commitment.
const kindAccess = 0x09

// AccessKeeper keeps the cluster access key over restarts.
type AccessKeeper interface {
	// AccessKeys returns the key in force and, behind it, the former ones that
	// are still accepted.
	AccessKeys(now time.Time) ([]keys.AccessKey, error)
	// ReplaceAccess puts a new key into force; the present one is accepted until
	// a time.
	ReplaceAccess(key keys.AccessKey, until time.Time) error
}

// useAccess gives the transport the keys that are in force now. It may wait for
// the disk, so the loop has a job do it.
func (c *Cluster) useAccess(now time.Time) error {
	if c.opts.Keys == nil {
		return nil
	}
	// Held so that an older list does not come after a newer one.
	c.using.Lock()
	defer c.using.Unlock()
	list, err := c.opts.Keys.AccessKeys(now)
	if err != nil {
		return err
	}
	if err := c.transport.SetAccess(list); err != nil {
		return err
	}
	inForce := list[0].Commitment()
	c.inForce.Store(&inForce)
	return nil
}

// adoptAccess puts a key into force, on disk first.
func (c *Cluster) adoptAccess(now time.Time, key keys.AccessKey, since time.Time) error {
	if err := c.opts.Keys.ReplaceAccess(key, since.Add(formerAccess)); err != nil {
		return err
	}
	return c.useAccess(now)
}

// renewAccess makes a new access key after a revocation. It is on this node's disk
// before the item that names it, so that whoever hears of it can get it here. A
// failure leaves the former key in force, which is no worse than before.
func (c *Cluster) renewAccess(now time.Time) error {
	signer := c.signer()
	if c.opts.Keys == nil || signer == nil {
		return nil
	}
	// Held as for targets: two revocations at once make two keys, one after the
	// other.
	c.rotating.Lock()
	defer c.rotating.Unlock()
	key, err := keys.NewAccessKey()
	if err != nil {
		return err
	}
	defer key.Wipe() // the keeper has a copy
	a := item.Access{Version: 1, Commitment: key.Commitment(), Created: now.UTC().Truncate(time.Second)}
	if last, ok := c.access(); ok {
		a.Version = last.Version + 1
	}
	if err := c.adoptAccess(now, key, now); err != nil {
		return err
	}
	it, err := item.SignAccess(now, c.opts.Identity.Trust, signer, a)
	if err != nil {
		return err
	}
	return c.items.merge([]*item.Item{it}, true)
}

// access returns what the cluster says about its access key; false if that is
// the one that init made.
func (c *Cluster) access() (item.Access, bool) {
	it := c.view.Load().cluster.Get(item.AccessSlot())
	if it == nil {
		return item.Access{}, false
	}
	return it.Access()
}

// accessMissing returns the access key that the cluster uses and this node lacks.
func (c *Cluster) accessMissing() (item.Access, bool) {
	want, ok := c.access()
	have := c.inForce.Load()
	return want, ok && have != nil && *have != want.Commitment
}

// fetchAccess asks a member for the access key in force, and uses it. Without a
// member it only looks anew which of the own keys are in force.
func (c *Cluster) fetchAccess(ctx context.Context, node ids.NodeID) error {
	if node.IsZero() {
		return c.useAccess(c.now())
	}
	want, missing := c.accessMissing()
	if !missing {
		return nil
	}
	b, err := c.call(ctx, node, append([]byte{kindAccess, version}, want.Commitment[:]...))
	if err != nil {
		return fmt.Errorf("ask node %s for the access key: %w", node, err)
	}
	defer clear(b)
	if len(b) != 2+32 || b[0] != kindAccess|kindAnswer || b[1] != version {
		return fmt.Errorf("ask node %s for the access key: %w", node, errMessage)
	}
	key, err := keys.AccessKeyFromRaw32(b[2:])
	if err != nil {
		return fmt.Errorf("ask node %s for the access key: %w", node, errMessage)
	}
	defer key.Wipe()
	// Whoever answers: only the key that an issuer named is taken.
	if key.Commitment() != want.Commitment {
		return fmt.Errorf("ask node %s for the access key: it is another one", node)
	}
	if err := c.adoptAccess(c.now(), key, want.Created); err != nil {
		return err
	}
	c.log.Info("cluster access key is replaced", logkey.Seq, want.Version)
	return nil
}

// serveAccess gives the access key in force to a member, which the peer is for
// certain: it is not revoked (serve has asked), and its certificate is good.
func (c *Cluster) serveAccess(from noisenet.Peer, req []byte) ([]byte, error) {
	if len(req) != 2+32 {
		return nil, errMessage
	}
	if c.opts.Keys == nil {
		return nil, errors.New("this node keeps no access key")
	}
	have, err := c.opts.Keys.AccessKeys(c.now())
	if err != nil {
		return nil, errors.New("no access key") // the reason stays here
	}
	if len(have) == 0 || have[0].Commitment() != [32]byte(req[2:]) {
		return nil, errors.New("another access key is in force here")
	}
	out := []byte{kindAccess | kindAnswer, version}
	have[0].Expose(func(raw []byte) { out = append(out, raw...) })
	c.log.Debug("access key is given to a member", logkey.Node, from.ID)
	return out, nil
}

// tickAccess asks a live member for a key that is missing, another one after a
// failure, until one has it; and takes former keys out of use when their time is
// over.
func (l *loop) tickAccess(ctx context.Context, now time.Time) {
	if now.Before(l.accessAt) {
		return
	}
	l.accessAt = now.Add(l.c.prof.retryMin)
	if _, missing := l.c.accessMissing(); missing {
		if id, ok := l.anyMember(); ok {
			l.start(ctx, job{kind: jobAccess, node: id})
		}
		return
	}
	if now.After(l.formerAt) && l.start(ctx, job{kind: jobAccess}) {
		l.formerAt = now.Add(time.Minute)
	}
}
