package membership

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"net/netip"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// maxLearned is how many addresses of members are kept for the next start.
const maxLearned = 5

// restore verifies what the cache holds. Entries that fail are left out: the
// file is on this node's disk, but a disk is no signer.
func (c *Cluster) restore() record.Set {
	var set record.Set
	if c.opts.Cache == nil {
		return set
	}
	entries, err := c.opts.Cache.Load()
	if err != nil {
		c.log.Warn("record cache is not used", logkey.Error, err)
		return set
	}
	for _, e := range entries {
		it, err := record.Reverify(c.opts.Identity.Trust, e)
		if err == nil {
			_, err = set.Insert(it)
		}
		if err != nil {
			c.log.Warn("cached record is left out", logkey.Node, e.ClaimedID(), logkey.Error, err)
		}
	}
	if set.Len() > 0 {
		c.log.Debug("records restored from the cache", logkey.Count, set.Len())
	}
	return set
}

// persist writes the record set and the learned seeds whenever they have
// changed, at most once per prof.save, and once more at the end.
func (c *Cluster) persist(ctx context.Context) {
	s := saver{c: c, digest: c.view.Load().snap.Digest}
	if len(c.view.Load().items) == 0 {
		s.digest = [32]byte{}
	}
	ticker := time.NewTicker(c.prof.save)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			s.save()
			return
		case <-ticker.C:
			s.save()
		}
	}
}

// saver remembers what was written. The goroutine in persist owns it.
type saver struct {
	c      *Cluster
	digest [32]byte // of the set written last
	seeds  []netip.AddrPort
	failed bool // the failure was logged
}

func (s *saver) save() {
	s.c.items.retry()
	v := s.c.view.Load()
	if s.c.opts.Cache != nil && v.snap.Digest != s.digest && len(v.items) > 0 {
		entries := make([]record.Entry, 0, len(v.items)+len(v.aside))
		for _, it := range slices.Concat(v.items, v.aside) {
			if len(entries) < record.MaxMembers {
				entries = append(entries, it.Entry)
			}
		}
		if s.ok(s.c.opts.Cache.Save(entries)) {
			s.digest = v.snap.Digest
		}
	}
	seeds := learnedSeeds(v.snap)
	if s.c.opts.SaveSeeds != nil && len(seeds) > 0 && !slices.Equal(seeds, s.seeds) {
		if s.ok(s.c.opts.SaveSeeds(seeds)) {
			s.seeds = seeds
		}
	}
}

// ok logs a failure once; the next round tries again. Neither file is needed
// to keep running.
func (s *saver) ok(err error) bool {
	if err != nil && !s.failed {
		s.c.log.Warn("membership is not saved for the next start", logkey.Error, err)
	}
	s.failed = err != nil
	return err == nil
}

// learnedSeeds picks up to maxLearned addresses of members, live ones first, of those
// that this node can call. Each node prefers others, by a hash, so that not all lean on the same five.
func learnedSeeds(s Snapshot) []netip.AddrPort {
	type candidate struct {
		dead bool
		rank [32]byte
		addr netip.AddrPort
	}
	var all []candidate
	own, known := s.Member(s.Self)
	known = known && len(own.Record.Underlay) > 0
	for _, m := range s.Members {
		i := slices.IndexFunc(m.Record.Underlay, func(u record.Underlay) bool { return !known || hasFamily(own.Record, u) })
		if m.ID == s.Self || i < 0 {
			continue
		}
		all = append(all, candidate{m.State != StateAlive, rank(s.Self, m.ID), m.Record.Underlay[i].Control})
	}
	slices.SortFunc(all, func(a, b candidate) int {
		if a.dead != b.dead {
			if a.dead {
				return 1
			}
			return -1
		}
		return cmp.Or(bytes.Compare(a.rank[:], b.rank[:]), a.addr.Compare(b.addr))
	})
	out := make([]netip.AddrPort, 0, maxLearned)
	for _, c := range all[:min(len(all), maxLearned)] {
		out = append(out, c.addr)
	}
	return out
}

func rank(self, other ids.NodeID) [32]byte {
	return sha256.Sum256(append(self[:], other[:]...))
}
