package keystore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

const (
	// maxSlots bounds how many slots an issuer signs items for: as many as a
	// set of items holds (membership/item).
	maxSlots = 2048

	// maxItem bounds an item in bytes; the largest has 1,489.
	maxItem = 2048
)

// signedItems is the body of items.json: of each slot the newest item that
// this issuer has signed.
type signedItems struct {
	Items []signedItem `json:"items"`
}

type signedItem struct {
	Slot    string `json:"slot"` // hexadecimal
	Version uint64 `json:"version"`
	Item    []byte `json:"item"` // with its signature
}

// loadItems reads items.json. An issuer that has signed nothing has no such
// file. Its loss is survivable: a version that is then signed twice is a
// conflict that every node decides alike, so the issuer goes on with the copy,
// or with nothing.
func (i *Issuer) loadItems() error {
	d := i.store.dir
	l, recovered, err := load[signedItems](d, itemsName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		i.itemsFresh = true
		return nil
	case errors.Is(err, ErrCorrupt):
		i.itemsFresh = true
		i.store.warn(d.file(itemsName) + " and the copy before it are damaged: the issuer has forgotten what it has signed for the cluster")
		return nil
	case err != nil:
		return err
	}
	i.items = l
	if recovered {
		i.store.warn(d.file(itemsName) + " was damaged or missing: went on with the copy before it")
		return d.saveBoth(itemsName, l)
	}
	return nil
}

// Delegation returns the root's statement about this issuer.
func (i *Issuer) Delegation() []byte { return bytes.Clone(i.delegation) }

// SignItem signs a cluster item (membership/item): unsigned is all of it but
// the signature, slot names what it is about, and version grows. The caller
// decides whether the item may be made.
//
// Of one slot each version is signed once: the item is on disk, flushed, before
// it is returned, and a request for that version or a lower one gets the newest
// item that was signed for the slot, whatever it asks for. So a crash between
// signing and spreading makes no second item, and many requests at once make
// one.
func (i *Issuer) SignItem(now time.Time, slot string, version uint64, unsigned []byte) ([]byte, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	out, err := i.signItem(now, slot, version, unsigned)
	if err != nil {
		return nil, fmt.Errorf("sign item of slot %x, version %d: %w", slot, version, err)
	}
	return bytes.Clone(out), nil
}

func (i *Issuer) signItem(now time.Time, slot string, version uint64, unsigned []byte) ([]byte, error) {
	if err := i.open(); err != nil {
		return nil, err
	}
	name := hex.EncodeToString([]byte(slot))
	n := slices.IndexFunc(i.items.Items, func(s signedItem) bool { return s.Slot == name })
	if n >= 0 && i.items.Items[n].Version >= version {
		if i.itemsUnsaved {
			if err := i.saveItems(); err != nil {
				return nil, err
			}
		}
		return i.items.Items[n].Item, nil
	}
	// The domain keeps this signature from being one of a certificate; the
	// cluster ID that follows keeps it in this cluster.
	head := append([]byte(keys.DomainItem), i.trust.Cluster[:]...)
	if !bytes.HasPrefix(unsigned, head) || len(unsigned) > maxItem {
		return nil, errors.New("not an item of this cluster")
	}
	// An issuer gives out nothing that a member would refuse: this catches an
	// expired delegation and a clock that went back.
	if _, err := i.trust.VerifyDelegation(i.delegation, now); err != nil {
		return nil, err
	}
	if n < 0 {
		if n = len(i.items.Items); n >= maxSlots {
			return nil, fmt.Errorf("items of %d slots are signed already", maxSlots)
		}
		i.items.Items = append(i.items.Items, signedItem{Slot: name})
	}
	sig := i.key.Sign(keys.DomainItem, unsigned[len(keys.DomainItem):])
	i.items.Items[n].Version, i.items.Items[n].Item = version, append(bytes.Clone(unsigned), sig[:]...)
	if err := i.saveItems(); err != nil {
		return nil, err
	}
	return i.items.Items[n].Item, nil
}

// SignHeartbeat signs a heartbeat (membership/item): unsigned is all of it but
// the signature. Nothing is written, because a heartbeat promises nothing that a
// crash could undo: its version is the time, and of two with one version every
// node keeps the one that it saw first, to no other effect.
func (i *Issuer) SignHeartbeat(now time.Time, unsigned []byte) ([]byte, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	if err := i.open(); err != nil {
		return nil, fmt.Errorf("sign heartbeat: %w", err)
	}
	// The kind is what makes it a heartbeat. No other item is signed here, where
	// nobody remembers what was.
	head := append(append([]byte(keys.DomainItem), i.trust.Cluster[:]...), keys.ItemHeartbeat)
	if !bytes.HasPrefix(unsigned, head) || len(unsigned) > maxItem {
		return nil, errors.New("sign heartbeat: not a heartbeat of this cluster")
	}
	if _, err := i.trust.VerifyDelegation(i.delegation, now); err != nil {
		return nil, fmt.Errorf("sign heartbeat: %w", err)
	}
	sig := i.key.Sign(keys.DomainItem, unsigned[len(keys.DomainItem):])
	return append(bytes.Clone(unsigned), sig[:]...), nil
}

// saveItems writes the list. If that fails memory keeps it, because the disk
// may have it, too, and nothing of it is given out until a write succeeds.
func (i *Issuer) saveItems() error {
	i.itemsUnsaved = true
	save := i.store.dir.save
	if i.itemsFresh {
		save = i.store.dir.saveBoth
	}
	if err := save(itemsName, i.items); err != nil {
		return err
	}
	i.itemsUnsaved, i.itemsFresh = false, false
	return nil
}
