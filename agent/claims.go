package agent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/agent/ipam"
	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

const (
	// waitingTime is how long a claim waits for a majority before status says so.
	waitingTime = 3 * time.Second
	// avoidTime is how long a block that was refused is not claimed again. By then
	// the record of whoever has it is here.
	avoidTime = 30 * time.Second
	// diskPause is the time from a write that failed to the next attempt.
	diskPause = time.Second
)

// asker asks other nodes for blocks; *membership.Cluster.
type asker interface {
	Claim(ctx context.Context, to ids.NodeID, msg []byte) ([]byte, error)
}

// claims are the blocks that this node wants to have and does not have yet. What is
// written down is the keeper's; all here belongs to the loop.
//
// The order in which things reach the record and the disk is what makes a block one
// node's; the whole argument is in DESIGN.md, Addresses:
//
//   - a claim is in the record before anybody is asked (ipam.Ledger.Serve insists);
//   - a block is off the disk before it is out of the record (publish);
//   - it is not claimed again before a record without it is out (ipam.Ledger.Barred).
type claims struct {
	keeper *keeper
	asker  asker
	asking ipam.Claims

	begun map[ipam.Block]bool // in the record that is to be published, and not on the disk yet
	avoid map[ipam.Block]avoided

	writing bool // a change of the ledger is under way
	retryAt time.Time
	failed  error // why the last one failed
}

// avoided is a claim that was given up.
type avoided struct {
	holder ids.NodeID // zero: not known
	until  time.Time
}

// input fills in what Desired has to know about blocks.
func (c *claims) input(now time.Time, v ipam.View, in *Input) {
	maps.DeleteFunc(c.avoid, func(_ ipam.Block, a avoided) bool { return !now.Before(a.until) })
	ledger := c.keeper.ledger()
	in.Barred = ledger.Barred(v)
	for b, a := range c.avoid {
		in.Barred[b] = a.holder
	}
	in.Blocks = nil
	for _, o := range ledger.Own(v.Self) {
		delete(c.begun, o.Block)
		if _, lost := c.avoid[o.Block]; o.Settled || !lost {
			in.Blocks = append(in.Blocks, o)
		}
	}
	for _, b := range sorted(c.begun) {
		// Its own record may list it already; another's has come in between.
		if holder, barred := in.Barred[b]; !barred || holder == v.Self {
			in.Blocks = append(in.Blocks, ipam.Own{Block: b})
		}
	}
}

// note takes up which blocks the record lists that is to be published.
func (c *claims) note(self ids.NodeID, r record.Node) {
	listed := listedBlocks(r.Networks)
	for _, o := range c.keeper.ledger().Own(self) {
		delete(listed, o.Block)
	}
	c.begun = listed
}

// step carries the claims on: what has to be written, and whom to ask. It returns
// when the next step is due; zero: when something is heard.
func (l *loop) stepClaims(ctx context.Context) time.Time {
	c := &l.claims
	v, ledger := l.clusterView(), c.keeper.ledger()
	s := c.asking.Next(l.now(), v, ledger)
	for _, lost := range s.Lost {
		c.avoid[lost.Block] = avoided{lost.Holder, l.now().Add(avoidTime)}
		l.log.Debug("address block not granted", logkey.Network, lost.Block.Network, logkey.Addr, lost.Block.Prefix, logkey.Node, lost.Holder)
		l.soon = true
	}
	for _, r := range s.Ask {
		l.startClaim(ctx, r)
	}
	l.writeClaims(ctx, v, ledger, s.Settle)
	return s.Wake
}

// writeClaims starts the next change of the ledger, if there is something to change:
// in one write the claims that end and that begin, those that are settled, and who votes.
func (l *loop) writeClaims(ctx context.Context, v ipam.View, ledger ipam.Ledger, settle []ipam.Tally) {
	c := &l.claims
	begin := sorted(c.begun)
	end := ledger.Unlisted(v.Self, listedBlocks(l.out.Record.Networks))
	if c.writing || l.now().Before(c.retryAt) || l.holds(end) ||
		len(begin)+len(end)+len(settle) == 0 && ledger.Learn(v).Equal(ledger) {
		return
	}
	l.writeLedger(ctx, func(v ipam.View, ledger ipam.Ledger) ipam.Ledger {
		ledger = ledger.Learn(v).Release(v, end).Begin(v, begin)
		for _, t := range settle {
			if next, err := ledger.Settle(v, t); err == nil {
				ledger = next
			}
		}
		return ledger
	})
}

// holds reports whether claims are not to end yet: after a restart the networks
// that they are of may not be known.
func (l *loop) holds(end []ipam.Block) bool { return len(end) > 0 && !l.holdUntil.IsZero() }

// writeLedger changes the ledger in a goroutine of its own.
func (l *loop) writeLedger(ctx context.Context, decide func(ipam.View, ipam.Ledger) ipam.Ledger) {
	c := &l.claims
	c.writing = true
	l.work(ctx, func(context.Context) func(*loop) {
		err := c.keeper.change(decide)
		return func(l *loop) {
			l.claims.writing, l.claims.failed = false, err
			if err != nil {
				l.claims.retryAt = l.now().Add(diskPause)
			}
		}
	})
}

// startClaim asks a node on a stream of its own.
func (l *loop) startClaim(ctx context.Context, r ipam.Request) {
	c := &l.claims
	raw := r.Ask.Encode()
	l.work(ctx, func(ctx context.Context) func(*loop) {
		b, err := c.asker.Claim(ctx, r.To, raw)
		var answer ipam.Answer
		if err == nil {
			answer, err = ipam.ParseAnswer(b)
		}
		if err == nil {
			// On the disk before it counts: what the answer says holds for longer
			// than this process.
			err = c.keeper.change(func(v ipam.View, ledger ipam.Ledger) ipam.Ledger {
				return ledger.Meet(v, r, answer)
			})
		}
		return func(l *loop) {
			if err != nil {
				l.log.Debug("no answer about address blocks", logkey.Node, r.To, logkey.Error, err)
			}
			l.claims.asking.Answer(l.now(), r, answer, err)
		}
	})
}

// released reports whether the record that is to be published leaves out no block
// that is this node's on the disk: others may grant those as soon as they see it.
func (l *loop) released() bool {
	return len(l.claims.keeper.ledger().Unlisted(l.identity.ID, listedBlocks(l.out.Record.Networks))) == 0
}

// releaseAll ends all claims, before this node says that it is on no network any more.
func (l *loop) releaseAll() error {
	return l.claims.keeper.change(func(v ipam.View, ledger ipam.Ledger) ipam.Ledger {
		return ledger.Release(v, ledger.Unlisted(v.Self, nil))
	})
}

// wantedBlocks are those in which addresses lie that an attach asks for.
func (l *loop) wantedBlocks() []ipam.Block {
	want := map[ipam.Block]bool{}
	for _, p := range l.pending {
		n, ok := l.here.Network(p.req.Network)
		if !ok || p.id != "" {
			continue
		}
		for _, a := range p.req.Addresses {
			if b, ok := blockOf(n.Subnets, a.Unmap()); ok {
				want[ipam.Block{Network: n.Name, Prefix: b}] = true
			}
		}
	}
	return sorted(want)
}

// blockOf returns the block that an address lies in.
func blockOf(subnets []netip.Prefix, a netip.Addr) (netip.Prefix, bool) {
	subnet, ok := subnetOf(subnets, a)
	if !ok {
		return netip.Prefix{}, false
	}
	b, err := a.Prefix(blockBits(subnet))
	return b, err == nil
}

// waiting says what a claim waits for; empty for a block that is not claimed.
func (l *loop) waiting(b ipam.Block) string {
	for _, w := range l.claims.asking.Waiting(l.identity.ID) {
		if w.Block == b {
			return l.waitText(w)
		}
	}
	return ""
}

func (l *loop) waitText(w ipam.Waiting) string {
	text := fmt.Sprintf("block %s waits for a majority: %d of %d votes, %d are needed", w.Prefix, w.Have, w.All, w.Need)
	if w.All == 0 {
		return fmt.Sprintf("block %s waits until this node knows the others", w.Prefix)
	}
	if len(w.Silent) == 0 {
		return text
	}
	var names []string
	for _, id := range w.Silent[:min(len(w.Silent), maxNamed)] {
		names = append(names, l.shown(id))
	}
	if more := len(w.Silent) - len(names); more > 0 {
		names = append(names, fmt.Sprintf("%d more", more))
	}
	return text + "; no answer from " + strings.Join(names, ", ")
}

// waitingProblems names the claims that wait for long, one for each network.
func (l *loop) waitingProblems() []api.Problem {
	var out []api.Problem
	for _, w := range l.claims.asking.Waiting(l.identity.ID) {
		if l.now().Sub(w.Since) < waitingTime || len(out) > 0 && out[len(out)-1].Subject == w.Network {
			continue
		}
		out = append(out, api.Problem{
			Code: "block-waiting", Subject: w.Network,
			Message: fmt.Sprintf("network %s: %s; until then this node has only the addresses of the blocks it has", w.Network, l.waitText(w)),
			Fix:     "start the nodes that do not answer, or check that their control ports can be reached; remove those that are gone for good: secure-overlay revoke NODE",
		})
	}
	return out
}
