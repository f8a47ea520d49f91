package noisenet

import (
	"fmt"

	"github.com/secure-overlay/secure-overlay/keys"
)

// accessEntry is a cluster access key and its ID in the clear header; or, with
// none, the handshake without access key, ID 0: for a node that has missed a
// change of the key for longer than the former one was accepted. It has to be
// said: a key that is merely missing must not lead there.
type accessEntry struct {
	key  keys.AccessKey
	id   uint32
	none bool
}

// entries are the access keys with which this node begins and answers handshakes,
// newest first.
func (p *party) entries() []accessEntry {
	if p.ring != nil {
		if all := p.ring(); len(all) > 0 {
			return all
		}
	}
	return []accessEntry{{key: p.access, id: p.keyID}}
}

// entry finds the key that a peer's header names. A peer without key may begin if
// there have not been many lately: its first message costs a Diffie-Hellman, which
// the access key would have kept from strangers.
func (p *party) entry(id uint32) (accessEntry, error) {
	if id == 0 {
		if p.unkeyed == nil || !p.unkeyed() {
			return accessEntry{}, fmt.Errorf("answer handshake without access key: there were too many: %w", ErrHandshake)
		}
		return accessEntry{none: true}, nil
	}
	for _, e := range p.entries() {
		if e.id == id {
			return e, nil
		}
	}
	return accessEntry{}, fmt.Errorf("answer handshake: access key ID %08x is unknown: %w", id, ErrHandshake)
}

// newAccessEntries gives keys their IDs.
func newAccessEntries(list []keys.AccessKey) ([]accessEntry, error) {
	out := make([]accessEntry, len(list))
	for i, k := range list {
		id, err := accessKeyID(k)
		if err != nil {
			return nil, err
		}
		out[i] = accessEntry{key: k, id: id}
	}
	return out, nil
}

// SetAccess replaces the cluster access keys in handshakes that begin from now
// on: the first is used where the peer takes it, the others are former ones that
// are still accepted. Streams and sessions that are open go on as they are. The
// keys share memory with the caller's.
func (t *Transport) SetAccess(list []keys.AccessKey) error {
	entries, err := newAccessEntries(list)
	if err != nil {
		return fmt.Errorf("set access keys: %w", err)
	}
	t.access.Store(&entries)
	return nil
}

// accessEntries is the party's ring.
func (t *Transport) accessEntries() []accessEntry {
	if e := t.access.Load(); e != nil {
		return *e
	}
	return nil
}
