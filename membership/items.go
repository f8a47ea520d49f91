package membership

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

// items is the set of cluster items together with its copy on disk. An item is
// on disk before the loop sees it, and so before anything follows from it: a
// node that restarts never goes back. Writing takes time, so it happens in the
// goroutine of the job or request that brought the item.
//
// mu guards the fields below it and is held while the file is written and while
// the loop takes the news, so that both see the sets in order. The loop never
// takes it.
type items struct {
	c *Cluster

	mu       sync.Mutex
	set      item.Set
	unsaved  bool // the last write failed
	conflict map[item.Slot]uint64
	full     bool // the full set was logged
}

// itemNews tells the loop about a changed set.
type itemNews struct {
	set     item.Set // a copy
	changed []*item.Item
	own     bool            // made here: nobody else has them
	taken   chan<- struct{} // closed when the view shows them
}

// restore reads what the last process has kept. It is verified, but for the
// clock: a version that was accepted once stays.
func (s *items) restore() item.Set {
	s.mu.Lock()
	defer s.mu.Unlock()
	log := s.c.log
	if s.c.opts.ItemCache == nil {
		return s.set.Clone()
	}
	stored, err := s.c.opts.ItemCache.Load()
	if err != nil {
		log.Warn("stored cluster items are not used", logkey.Error, err)
	}
	for _, raw := range stored {
		it, err := item.Reverify(s.c.opts.Identity.Trust, raw)
		if err == nil {
			_, err = s.set.Insert(it)
		}
		if err != nil {
			log.Warn("stored cluster item is left out", logkey.Error, err)
		}
	}
	return s.set.Clone()
}

// merge takes in verified items and returns when the view shows what has
// changed.
//
// An item from others is used even if it cannot be written, because a full disk
// must not cut this node off from where the cluster goes; retry writes it later.
// An own item is not: others must never see what a crash here would undo.
//
// Revocations of others come first, and before the disk: one that hangs must not
// keep a revoked node in.
func (s *items) merge(got []*item.Item, own bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if own {
		return s.take(got, true, false)
	}
	var revocations, rest []*item.Item
	for _, it := range got {
		if it.Slot.Kind == item.KindRevocation {
			revocations = append(revocations, it)
		} else {
			rest = append(rest, it)
		}
	}
	return errors.Join(s.take(revocations, false, true), s.take(rest, false, false))
}

// take merges some items; mu is held. urgent: the loop gets them before the disk.
func (s *items) take(got []*item.Item, own, urgent bool) error {
	next := s.set.Clone()
	var changed []*item.Item
	for _, it := range got {
		ok, err := next.Insert(it)
		if err != nil {
			s.refused(it, err)
		}
		if ok {
			changed = append(changed, it)
		}
	}
	if len(changed) == 0 {
		return nil
	}
	if urgent {
		s.set = next
		s.show(changed, own)
	}
	if err := s.save(next); err != nil && own {
		return fmt.Errorf("keep cluster item: %w", err)
	}
	if !urgent {
		s.set = next
		s.show(changed, own)
	}
	return nil
}

// show gives the loop what has changed and waits until the view shows it; mu is
// held.
func (s *items) show(changed []*item.Item, own bool) {
	taken := make(chan struct{})
	select {
	case s.c.itemNews <- itemNews{set: s.set.Clone(), changed: changed, own: own, taken: taken}:
		<-taken
	case <-s.c.ended:
		// The next start reads it from the disk.
	}
}

// save writes the whole set; mu is held. A failure is logged once.
func (s *items) save(set item.Set) error {
	if s.c.opts.ItemCache == nil {
		return nil
	}
	all := set.Items()
	raw := make([][]byte, len(all))
	for i, it := range all {
		raw[i] = it.Raw
	}
	err := s.c.opts.ItemCache.Save(raw)
	if err != nil && !s.unsaved {
		s.c.log.Error("cluster items are not kept: a restart would forget them", logkey.Error, err)
	}
	s.unsaved = err != nil
	return err
}

// retry repeats a write that failed.
func (s *items) retry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.unsaved {
		_ = s.save(s.set) // logged when it first failed
	}
}

// refused logs why a verified item did not simply enter the set; mu is held.
func (s *items) refused(it *item.Item, err error) {
	switch {
	case errors.Is(err, item.ErrConflict) && s.conflict[it.Slot] < it.Version:
		if s.conflict == nil {
			s.conflict = make(map[item.Slot]uint64)
		}
		s.conflict[it.Slot] = it.Version
		s.c.log.Warn("two issuers made a cluster item at once: all nodes keep the same one",
			logkey.Subject, it.Slot.String(), logkey.Seq, it.Version)
	case errors.Is(err, item.ErrFull) && !s.full:
		s.full = true
		s.c.log.Error("set of cluster items is full: those of the highest slots are left out", logkey.Count, item.MaxItems)
	}
}

// accept verifies items, whoever sent them. Left out are those that the set has
// or has newer ones of, and those from the future: the peer may have got them in
// time, or one of the clocks is wrong. One that cannot be true spoils them all.
func (c *Cluster) accept(now time.Time, raws [][]byte) ([]*item.Item, error) {
	v := c.view.Load()
	var out []*item.Item
	for _, raw := range raws {
		it, err := item.Parse(raw)
		if err != nil {
			return nil, &invalidError{err}
		}
		if outdated(&v.cluster, it) {
			continue
		}
		it, err = item.Verify(c.opts.Identity.Trust, now, raw)
		switch {
		case errors.Is(err, keys.ErrNotYetValid):
			continue
		case err != nil:
			return nil, &invalidError{err}
		}
		out = append(out, it)
	}
	return out, nil
}

// outdated reports whether a set has an item or a newer one of its slot, or knows
// that it is void.
func outdated(set *item.Set, it *item.Item) bool {
	have := set.Get(it.Slot)
	if set.Void(it) {
		return true // whoever sends it may not know yet that its issuer is out
	}
	return have != nil && (have.Version > it.Version || have.Hash == it.Hash)
}
