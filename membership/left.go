package membership

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// ErrLeft: the node has left the cluster, by its own word.
var ErrLeft = errors.New("node has left the cluster")

// departure asks the loop to publish the final record.
type departure struct {
	at   time.Time
	done chan error // capacity 1
}

// leaver is a node that has left and whose streams are still open.
type leaver struct {
	node ids.NodeID
	due  time.Time
}

// Depart takes this node out of the cluster, for good: it publishes its final
// record, which no other replaces, and nothing after it. Every node that has the
// record takes this one out of its kernel and refuses it. Depart returns when
// the Snapshot shows it, and from then on Member.Told says who is known to have
// it. Repeated, it keeps the first time. The caller has it on disk that the node
// leaves: a crash must not make a member of it again that nobody accepts.
// Errors: ErrNotRunning (wrapped).
func (c *Cluster) Depart(ctx context.Context, at time.Time) error {
	if !c.running.Load() {
		return fmt.Errorf("leave the cluster: %w", ErrNotRunning)
	}
	d := departure{at: at, done: make(chan error, 1)}
	select {
	case c.departs <- d:
	case <-c.ended:
		return fmt.Errorf("leave the cluster: %w", ErrNotRunning)
	case <-ctx.Done():
		return fmt.Errorf("leave the cluster: %w", ctx.Err())
	}
	// The loop has taken it, and answers before it looks at anything else.
	if err := <-d.done; err != nil {
		return fmt.Errorf("leave the cluster: %w", err)
	}
	return nil
}

// depart publishes the final record of this node.
func (l *loop) depart(now, at time.Time) error {
	if l.departed() {
		return nil
	}
	raw, err := record.Sign(record.Final(l.c.self, at), l.c.opts.Identity.Node)
	if err != nil {
		return err
	}
	if err := l.insertOwn(now, record.Entry{Credential: l.credential, Record: raw}); err != nil {
		return err
	}
	l.c.log.Info("this node leaves the cluster")
	return nil
}

// departed reports whether this node has left.
func (l *loop) departed() bool { return l.left(l.c.self) }

// left reports whether a node has left. A revoked one that had left before is
// revoked, and nothing else.
func (l *loop) left(id ids.NodeID) bool {
	it := l.set.Get(id)
	return it != nil && it.Head.Final()
}

// gone reports whether a node is out, whether it left or was thrown out.
func (l *loop) gone(id ids.NodeID) bool { return l.items.Revoked(id) || l.left(id) }

// refusal says why a node is refused.
func (c *Cluster) refusal(id ids.NodeID) error {
	if v := c.view.Load(); v.left(id) && !v.cluster.Revoked(id) {
		return ErrLeft
	}
	return ErrRevoked
}

// letGo forgets what is planned with a node that has left. From the next view on
// it is refused; its open streams are closed a little later. Nothing but an
// error is answered on them meanwhile, and that is what they are left open for:
// the node learns that this one knows, and need not wait.
func (l *loop) letGo(now time.Time, it *record.Item) {
	id := it.Head.ID
	l.c.log.Info("member has left", logkey.Node, id, logkey.Name, it.Cert.Hostname)
	delete(l.peers, id)
	delete(l.pulls, id)
	l.leavers = append(l.leavers, leaver{id, now.Add(l.c.prof.grace)})
}

// tickLeft closes the streams and sessions of nodes that have left.
func (l *loop) tickLeft(now time.Time) {
	l.leavers = slices.DeleteFunc(l.leavers, func(f leaver) bool {
		if now.Before(f.due) {
			return false
		}
		l.c.transport.Drop(f.node)
		return true
	})
}

// noteTold notes that a node knows by now that this one has left: it has
// answered the final record, or says or shows that it refuses this node.
// Nothing but what people are shown depends on it.
func (l *loop) noteTold(now time.Time, p *peer, r result) {
	var remote *noisenet.RemoteError
	switch {
	case !r.left || p.told:
	case r.kind == jobPush && r.err == nil, r.complete,
		errors.Is(r.err, noisenet.ErrTurnedAway),
		errors.As(r.err, &remote) && remote.Text == ErrLeft.Error():
		p.told, l.dirty = true, true
	case r.kind == jobPush:
		p.pushDue, p.pushAt = true, now.Add(l.c.prof.retryMin)
	}
}
