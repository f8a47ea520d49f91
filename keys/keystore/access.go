package keystore

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

// maxFormer bounds the former access keys that are kept.
const maxFormer = 8

// formerKeys is the body of access.json: access keys that were in force before
// access.key, newest first, and until when they are accepted.
type formerKeys struct {
	Former []formerKey `json:"former"`
}

type formerKey struct {
	Key   string    `json:"key"` // 64 hexadecimal digits
	Until time.Time `json:"until"`
}

// loadFormer reads access.json. A node that has seen one key only has none; one
// whose file is lost cannot answer nodes that missed the last change, which find
// another way in.
func (s *Store) loadFormer() error {
	l, recovered, err := load[formerKeys](s.dir, formerName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, ErrCorrupt):
		s.warn(s.dir.file(formerName) + " and the copy before it are damaged: former access keys are forgotten")
		return nil
	case err != nil:
		return err
	}
	if recovered {
		s.warn(s.dir.file(formerName) + " was damaged or missing: went on with the copy before it")
	}
	for _, f := range l.Former {
		raw, err := hex.DecodeString(f.Key)
		if err == nil {
			var k keys.AccessKey
			if k, err = keys.AccessKeyFromRaw32(raw); err == nil {
				s.former = append(s.former, former{k, f.Until})
			}
		}
		clear(raw)
		if err != nil {
			return fmt.Errorf("read %s: former access key: %w", s.dir.file(formerName), ErrCorrupt)
		}
	}
	return nil
}

// former is an access key that was in force.
type former struct {
	key   keys.AccessKey
	until time.Time
}

// AccessKeys returns the cluster access key in force and, behind it, the former
// ones that are still accepted at now. They share memory with the Store: do not
// Wipe them.
func (s *Store) AccessKeys(now time.Time) ([]keys.AccessKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, ErrClosed
	}
	out := []keys.AccessKey{s.id.Access}
	for _, f := range s.former {
		if now.Before(f.until) {
			out = append(out, f.key)
		}
	}
	return out, nil
}

// ReplaceAccess puts a new cluster access key into force; the present one is
// accepted until a time. key is copied. The former keys are written first: a
// crash in between leaves the present key both in force and former, which is
// harmless.
func (s *Store) ReplaceAccess(key keys.AccessKey, until time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.replaceAccess(key, until); err != nil {
		return fmt.Errorf("replace access key: %w", err)
	}
	return nil
}

func (s *Store) replaceAccess(key keys.AccessKey, until time.Time) error {
	switch {
	case s.closed:
		return ErrClosed
	case key.IsZero():
		return errors.New("no key")
	case s.id.Access.Equal(key):
		return nil
	}
	now := s.now()
	list := slices.DeleteFunc(slices.Clone(s.former), func(f former) bool { return !now.Before(f.until) || f.key.Equal(key) })
	list = slices.Insert(list, 0, former{s.id.Access, until})
	list = list[:min(len(list), maxFormer)]
	var body formerKeys
	for _, f := range list {
		f.key.Expose(func(raw []byte) {
			body.Former = append(body.Former, formerKey{hex.EncodeToString(raw), f.until.UTC().Truncate(time.Second)})
		})
	}
	if err := s.dir.saveBoth(formerName, body); err != nil {
		return err
	}
	line := keyLine(accessKeyTag, key)
	defer clear(line)
	if err := s.dir.replace(accessKeyName, line); err != nil {
		return err
	}
	s.former = list
	s.id.Access = key.Clone()
	return nil
}
