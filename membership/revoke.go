package membership

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

// Errors of Revoke, besides ErrNotRunning.
var (
	// ErrNotIssuer: only a node with an issuer key revokes, on the word of its
	// own operator. It does not do so for other members: one that is in wrong
	// hands could throw out all others.
	ErrNotIssuer = errors.New("this node has no issuer key")
	// ErrRevokeSelf: the node would cut itself off.
	ErrRevokeSelf = errors.New("a node does not revoke itself")
	// ErrRevoked: the node was revoked.
	ErrRevoked = errors.New("node is revoked")
)

// Revoke throws a node out of the cluster, for good: no node sends to it,
// accepts anything from it, or admits its identity again. It returns when this
// node's Snapshot shows it; the others learn it at once if they can be reached,
// else when they are back. A node that is revoked already stays so, with its
// first reason. name is for people.
//
// The order is that of security.md 2.6: whoever reads the Snapshot takes the
// node out of the kernel; its streams, sessions and record are gone by then.
// Errors: ErrNotIssuer, ErrRevokeSelf, ErrNotRunning (wrapped).
func (c *Cluster) Revoke(_ context.Context, r item.Revocation) (item.Revocation, error) {
	out, err := c.revoke(c.now(), r)
	if err != nil {
		return item.Revocation{}, fmt.Errorf("revoke node %s: %w", r.Node, err)
	}
	return out, nil
}

func (c *Cluster) revoke(now time.Time, r item.Revocation) (item.Revocation, error) {
	switch {
	case !c.running.Load():
		return r, ErrNotRunning
	case r.Node == c.self:
		return r, ErrRevokeSelf
	}
	if have, ok := c.revoked(r.Node); ok {
		return have, nil
	}
	signer := c.signer()
	switch {
	case c.opts.Signer == nil:
		return r, ErrNotIssuer
	case signer == nil:
		return r, ErrIssuerRevoked
	}
	r.Created = now.UTC().Truncate(time.Second)
	it, err := item.SignRevocation(now, c.opts.Identity.Trust, signer, r)
	if err != nil {
		return r, err
	}
	// The issuer's store has it on disk by now: a crash here makes the next
	// attempt give the same item.
	if err := c.items.merge([]*item.Item{it}, true); err != nil {
		return r, err
	}
	have, ok := c.revoked(r.Node)
	if ok {
		// It knows the access key. That it cannot be replaced is no reason to
		// say that the node is not out.
		if err := c.renewAccess(now); err != nil {
			c.log.Error("cluster access key is not replaced", logkey.Error, err)
		}
		return have, nil
	}
	return r, errors.New("set of cluster items has no room for it")
}

// revoked returns a node's revocation, if the view has one.
func (c *Cluster) revoked(id ids.NodeID) (item.Revocation, bool) {
	return c.view.Load().cluster.Revocation(id)
}

// refuse reports whether a node is revoked, or has left.
func (c *Cluster) refuse(id ids.NodeID) bool {
	v := c.view.Load()
	return v.cluster.Revoked(id) || v.left(id)
}

// expel forgets a revoked node: its record, and what is planned with it. Its
// streams are closed when the view says that it is revoked, because only from
// then on does the transport refuse to open new ones (dropExpelled).
func (l *loop) expel(r item.Revocation) {
	if r.Node == l.c.self {
		l.c.log.Error("this node is revoked: the others have thrown it out", logkey.Reason, r.Reason)
		return
	}
	l.c.log.Warn("node is revoked", logkey.Node, r.Node, logkey.Name, r.Name, logkey.Reason, r.Reason)
	l.putAside(r.Node)
	delete(l.peers, r.Node)
	delete(l.pulls, r.Node)
	l.expelled = append(l.expelled, r.Node)
}

// putAside takes the record of a revoked node out of the set, to where nothing
// looks at it. It is kept for the case that the root voids the revocation: the
// node's certificate may be by an issuer of which nothing new is believed.
func (l *loop) putAside(id ids.NodeID) {
	it := l.set.Get(id)
	if it == nil {
		return
	}
	l.set.Delete(id)
	if len(l.aside) < item.MaxItems {
		l.aside[id] = it
	}
}

// takeBack puts the records of nodes back whose revocation is void.
func (l *loop) takeBack() {
	for id, it := range l.aside {
		if l.items.Revoked(id) {
			continue
		}
		delete(l.aside, id)
		if _, err := l.set.Insert(it); err != nil {
			l.refused(it, err)
		}
		l.c.log.Warn("revocation of a node is void: its issuer was revoked", logkey.Node, id, logkey.Name, it.Cert.Hostname)
	}
}

// dropExpelled ends the streams and sessions of nodes that the view shows as
// revoked by now.
func (l *loop) dropExpelled() {
	for _, id := range l.expelled {
		l.c.transport.Drop(id)
	}
	l.expelled = nil
}
