package agent

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// How long the first round waits for the cached records: they are read before
// the control port opens, so this is milliseconds. A fresh node has none.
const (
	cacheWait      = 250 * time.Millisecond
	cacheWaitAdopt = 2 * time.Second
)

// restore reads what a previous agent left. Its kernel objects are adopted by
// the drivers; this is what they need to be compared with.
func (l *loop) restore() {
	if last, ok := l.files.loadApplied(); ok && last.Node == l.identity.ID {
		l.restored = last
		l.previous = last.Record
		l.holdUntil = l.now().Add(grace)
		l.facts.Former = map[netip.Addr]ids.NodeID{}
		l.restorePaths(last.Paths)
		for _, p := range last.Pairs {
			l.facts.Former[p.Peer.InnerAddr()] = p.Peer
			l.rot.hybrid[p.Key] = p.Hybrid
		}
	}
	// Endpoints whose path names nothing any more, as that of a process that
	// has ended, are kept: the namespace itself may live, and then its link
	// does. The first round finds out and drops those that are gone.
}

// waitForCache waits until membership shows the records and the target epoch
// that it has stored, so that the first round knows the peers that the previous
// agent knew, and makes no device of an epoch that is long over.
func (l *loop) waitForCache(ctx context.Context) {
	wait := cacheWait
	if !l.holdUntil.IsZero() {
		wait = cacheWaitAdopt
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	missing := func() bool {
		snap := l.gossip.Snapshot()
		return snap.Target.Epoch == 0 || len(snap.Members) == 0
	}
	for missing() {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			return
		case <-l.gossip.Changes():
		}
	}
}

// close releases what open opened, in reverse. The data plane stays.
func (l *loop) close() {
	for _, c := range slices.Backward(l.closers) {
		if err := c(); err != nil {
			l.log.Debug("close", logkey.Error, err)
		}
	}
	l.closers = nil
}

// endpointNS is a network namespace to attach.
type endpointNS interface {
	ID() nl.ID
	Links() ([]string, error)
	Close()
}

// openNS is a namespace of the kernel.
type openNS struct {
	ns *nl.Namespace
	id nl.ID
}

func openEndpoint(path string) (endpointNS, error) {
	ns, err := nl.OpenNamespace(path)
	if err != nil {
		return nil, err
	}
	id, err := ns.LastingID()
	if err != nil {
		_ = ns.Close()
		return nil, err
	}
	return openNS{ns: ns, id: id}, nil
}

// ID implements endpointNS.
func (o openNS) ID() nl.ID { return o.id }

// Close implements endpointNS.
func (o openNS) Close() { _ = o.ns.Close() }

// Links implements endpointNS: the names of all links.
func (o openNS) Links() ([]string, error) {
	h, err := o.ns.Handle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return nil, err
	}
	names := make([]string, len(links))
	for i, l := range links {
		names[i] = l.Attrs().Name
	}
	return names, nil
}

// namespaces knows the agent's own namespaces.
type namespaces struct {
	dir  string
	open func(path string) (endpointNS, error)
}

// ours reports whether id is the secure namespace or a network's. Attaching
// one of them would put a link into the secure namespace that is no tunnel.
func (n namespaces) ours(id nl.ID) bool {
	entries, err := os.ReadDir(n.dir)
	if err != nil {
		return false
	}
	for _, e := range entries {
		ns, err := n.open(filepath.Join(n.dir, e.Name()))
		if err != nil {
			continue
		}
		same := ns.ID() == id
		ns.Close()
		if same {
			return true
		}
	}
	return false
}
