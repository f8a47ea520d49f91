package membership

import (
	"errors"
	"fmt"
	"slices"
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

	storedBeats []*item.Item       // heartbeats that were stored at the start
	beatsKept   map[item.Slot]bool // issuers of those that are stored now
}

// itemNews tells the loop about a changed set.
type itemNews struct {
	set     item.Set // a copy
	changed []*item.Item
	double  []Conflict      // items of which there were two
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
	s.beatsKept = make(map[item.Slot]bool)
	stored, err := s.c.opts.ItemCache.Load()
	if err != nil {
		log.Warn("stored cluster items are not used", logkey.Error, err)
	}
	for _, raw := range stored {
		it, err := item.Reverify(s.c.opts.Identity.Trust, raw)
		if err == nil {
			_, err = s.set.Insert(it)
		}
		if err == nil && it.Slot.Kind == item.KindHeartbeat {
			s.storedBeats = append(s.storedBeats, it)
			s.beatsKept[it.Slot] = true
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
	var double []Conflict
	for _, it := range got {
		have := next.Get(it.Slot)
		ok, err := next.Insert(it)
		if err != nil {
			s.refused(it, err)
		}
		if ok {
			changed = append(changed, it)
		}
		if errors.Is(err, item.ErrConflict) && !it.Slot.Kind.Agreed() {
			double = append(double, newConflict(time.Now(), next.Get(it.Slot), have, it))
		}
	}
	if len(changed) == 0 {
		if len(double) > 0 {
			s.show(nil, double, own)
		}
		return nil
	}
	if urgent {
		s.set = next
		s.show(changed, double, own)
	}
	if err := s.save(next); err != nil && own {
		return fmt.Errorf("keep cluster item: %w", err)
	}
	if !urgent {
		s.set = next
		s.show(changed, double, own)
	}
	return nil
}

// show gives the loop what has changed and waits until the view shows it; mu is
// held.
func (s *items) show(changed []*item.Item, double []Conflict, own bool) {
	taken := make(chan struct{})
	select {
	case s.c.itemNews <- itemNews{set: s.set.Clone(), changed: changed, double: double, own: own, taken: taken}:
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
	beats := s.c.view.Load().beats.Items()
	err := s.c.opts.ItemCache.Save(raws(append(set.Items(), beats...)))
	if err == nil {
		s.beatsKept = make(map[item.Slot]bool)
		for _, it := range beats {
			s.beatsKept[it.Slot] = true
		}
	}
	if err != nil && !s.unsaved {
		s.c.log.Error("cluster items are not kept: a restart would forget them", logkey.Error, err)
	}
	s.unsaved = err != nil
	return err
}

// retry repeats a write that failed, and writes once for each issuer that was
// heard for the first time: then the next process knows that there are
// heartbeats, and misses them. Later ones of the issuer are written along with
// something else; none is worth a flush of its own.
func (s *items) retry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	beats := s.c.view.Load().beats.Items()
	if s.unsaved || slices.ContainsFunc(beats, func(it *item.Item) bool { return !s.beatsKept[it.Slot] }) {
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
func (c *Cluster) accept(raws [][]byte) ([]*item.Item, error) {
	v := c.view.Load()
	var out []*item.Item
	for _, raw := range raws {
		it, err := item.Parse(raw)
		if err != nil {
			return nil, &invalidError{err}
		}
		if outdated(&v.cluster, it) || v.beats.Outdated(it) {
			continue
		}
		isBeat := it.Slot.Kind == item.KindHeartbeat
		it, err = c.verifyItem(raw)
		switch {
		case errors.Is(err, keys.ErrNotYetValid), isBeat && errors.Is(err, keys.ErrExpired):
			continue
		case err != nil:
			return nil, &invalidError{err}
		}
		out = append(out, it)
	}
	return out, nil
}

// verifyItem verifies an item with the time that is right for its date.
func (c *Cluster) verifyItem(raw []byte) (*item.Item, error) {
	claim, err := item.Parse(raw)
	if err != nil {
		return nil, err
	}
	verify := item.Verify
	if claim.Slot.Kind == item.KindHeartbeat {
		verify = item.VerifyHeartbeat
	}
	return verify(c.opts.Identity.Trust, c.opts.Clock.For(claim.Created), raw)
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
