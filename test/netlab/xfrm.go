package netlab

import (
	"bytes"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// ESPKey is the key of one security association, for tests that search for it
// where it must not be. It is never printed.
type ESPKey struct {
	SPI uint32
	raw []byte // 32 bytes of AES-256 key, without the salt
}

// Expose calls f with the 32 bytes of the key.
func (k ESPKey) Expose(f func(raw []byte)) { f(k.raw) }

// ESPKeys reads the keys of all ESP associations of a namespace with AES-GCM.
func ESPKeys(ns *nl.Namespace) ([]ESPKey, error) {
	var found []ESPKey
	err := ns.Do(func() error {
		h, err := netlink.NewHandle(unix.NETLINK_XFRM)
		if err != nil {
			return err
		}
		defer func() { _ = h.Close() }()
		states, err := h.XfrmStateList(netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, s := range states {
			if s.Aead != nil && len(s.Aead.Key) >= 32 {
				found = append(found, ESPKey{SPI: uint32(s.Spi), raw: bytes.Clone(s.Aead.Key[:32])})
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read ESP associations: %w", err)
	}
	return found, nil
}
