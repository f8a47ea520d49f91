package keystore

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
)

const (
	// seqBlock is how many sequence numbers one write reserves: about one
	// write a quarter of an hour for a node that publishes each second.
	seqBlock = 1000

	// seqSkip is added after the newest state file was lost. That file was at
	// most one reservation ahead of its copy (see NextSeq and RaiseSeq), so
	// one block would do; numbers are plentiful.
	seqSkip = 1 << 20

	// maxSeeds bounds the saved addresses; more than a start needs.
	maxSeeds = 64
)

// state is the body of state.json.
type state struct {
	Hostname string           `json:"hostname"`         // chosen by Prepare; the certificate's, later
	Reserved uint64           `json:"record_seq_limit"` // no sequence number above has been given out
	Seeds    []netip.AddrPort `json:"seeds"`
}

func (s *Store) loadState() error {
	st, recovered, err := load[state](s.dir, stateName)
	if errors.Is(err, fs.ErrNotExist) {
		// A prepared joiner without a state has published nothing. A member
		// has: to begin at 1 again would have its records ignored.
		if !s.id.Joined() {
			return s.dir.saveBoth(stateName, s.state)
		}
		return fmt.Errorf("%s and its copy are missing: restore them from a backup, or join again with an empty data directory: %w",
			s.dir.file(stateName), ErrCorrupt)
	}
	if err != nil {
		return err
	}
	if recovered {
		st.Reserved += seqSkip
		if err := s.dir.saveBoth(stateName, st); err != nil {
			return err
		}
		s.warn(s.dir.file(stateName) + " was damaged or missing: went on with the copy before it")
	}
	s.state, s.nextSeq = st, st.Reserved+1
	if !s.id.Joined() {
		s.id.Hostname = st.Hostname
	}
	return nil
}

// putState saves st and then makes it current. Callers hold mu or are alone.
func (s *Store) putState(st state) error {
	if s.closed {
		return ErrClosed
	}
	if err := s.dir.save(stateName, st); err != nil {
		return err
	}
	s.state = st
	return nil
}

// NextSeq returns a record sequence number that no earlier call has
// returned, also across crashes. The first is 1; after a restart numbers are
// left out.
func (s *Store) NextSeq() (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0, ErrClosed
	}
	if s.nextSeq == 0 {
		s.nextSeq = 1
	}
	if s.nextSeq > s.state.Reserved {
		// The block is on disk before its first number is out, so a crash
		// wastes numbers and repeats none. After a failed write the same block
		// is tried again: none of it has been used.
		st := s.state
		st.Reserved += seqBlock
		if err := s.putState(st); err != nil {
			return 0, fmt.Errorf("reserve record sequence numbers: %w", err)
		}
	}
	n := s.nextSeq
	s.nextSeq++
	return n, nil
}

// RaiseSeq makes every later NextSeq greater than seen. It is for a node
// that hears its own record with a sequence number it does not remember,
// because its data directory was restored from a backup.
func (s *Store) RaiseSeq(seen uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if seen < s.nextSeq {
		return nil
	}
	// Far below the end of the range, so that a forged number cannot exhaust
	// it; only this node's own signature gets one here in the first place.
	if seen > 1<<62 {
		return fmt.Errorf("raise record sequence: %d is out of range", seen)
	}
	st := s.state
	st.Reserved = max(st.Reserved, seen)
	// Twice, so that the copy has the jump as well: recovery relies on the
	// copy being at most one block behind.
	for range 2 {
		if err := s.putState(st); err != nil {
			return fmt.Errorf("raise record sequence: %w", err)
		}
	}
	s.nextSeq = st.Reserved + 1
	return nil
}

// Seeds returns the addresses last saved.
func (s *Store) Seeds() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.state.Seeds)
}

// SaveSeeds persists addresses of members for the next start, at most 64. It
// writes only if they changed.
func (s *Store) SaveSeeds(seeds []netip.AddrPort) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	seeds = slices.Clone(seeds[:min(len(seeds), maxSeeds)])
	if slices.Equal(seeds, s.state.Seeds) {
		return nil
	}
	st := s.state
	st.Seeds = seeds
	if err := s.putState(st); err != nil {
		return fmt.Errorf("save seeds: %w", err)
	}
	return nil
}
