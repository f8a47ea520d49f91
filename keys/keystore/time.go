package keystore

import (
	"errors"
	"fmt"
	"io/fs"
	"time"
)

// trustedTime is the body of time.json.
type trustedTime struct {
	Trusted time.Time `json:"trusted"` // whole seconds
}

// loadTime reads time.json. Its loss is survivable: the beginning of the
// certificate is a time that has certainly come, too, only longer ago. The copy
// before it is minutes older and as true.
func (s *Store) loadTime() error {
	s.trusted = s.id.Cert.NotBefore
	t, recovered, err := load[trustedTime](s.dir, timeName)
	switch {
	case errors.Is(err, ErrCorrupt): // first: the copy may be missing besides
		s.warn(s.dir.file(timeName) + " is damaged and there is no good copy: the trusted time goes back to the begin of this node's certificate")
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	}
	if recovered {
		s.warn(s.dir.file(timeName) + " was damaged or missing: went on with the copy before it")
	}
	s.trusted, s.timeKept = t.Trusted, !recovered
	return nil
}

// now is the present time, but never before the trusted time: Store's own use
// of it is small, and whoever decides more has a clock.Clock.
func (s *Store) now() time.Time {
	if now := s.clock(); now.After(s.trusted) {
		return now
	}
	return s.trusted
}

// TrustedTime returns the trusted time (package clock) that was saved last, or
// where there is none, the begin of this node's certificate. Zero for a node that
// is no member yet.
func (s *Store) TrustedTime() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.trusted
}

// SaveTrustedTime persists the trusted time, in whole seconds. It never goes
// back, and a write that fails changes nothing.
func (s *Store) SaveTrustedTime(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	t = t.UTC().Truncate(time.Second)
	if s.timeKept && !t.After(s.trusted) {
		return nil
	}
	save := s.dir.save
	if !s.timeKept {
		// The first one, or one after damage, which must not become the copy.
		save = s.dir.saveBoth
	}
	if t.Before(s.trusted) {
		t = s.trusted
	}
	if err := save(timeName, trustedTime{t}); err != nil {
		return fmt.Errorf("save trusted time: %w", err)
	}
	s.trusted, s.timeKept = t, true
	return nil
}
