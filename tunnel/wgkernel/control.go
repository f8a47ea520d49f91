package wgkernel

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/wg"
)

// Control opens a WireGuard control socket in the secure namespace, where the
// links are. It is opened for each use: before the module is loaded there is no
// such family.
func (m *maker) Control() (wg.Control, error) {
	k, err := m.env.Secure.Keyed(unix.NETLINK_GENERIC)
	if err != nil {
		return nil, fmt.Errorf("open WireGuard control socket: %w", err)
	}
	c := &control{keyed: k}
	if c.family, err = familyID(k); err != nil {
		k.Close()
		return nil, fmt.Errorf("open WireGuard control socket: %w", err)
	}
	return c, nil
}

// familyID asks for the number of WireGuard's generic netlink family.
func familyID(k *nl.Keyed) (uint16, error) {
	ask := append([]byte{unix.CTRL_CMD_GETFAMILY, 1, 0, 0},
		attr(nil, unix.CTRL_ATTR_FAMILY_NAME, append([]byte(unix.WG_GENL_NAME), 0))...)
	var id uint16
	var malformed error
	err := k.Do(unix.GENL_ID_CTRL, ask, func(m []byte) {
		malformed = attributes(m[min(unix.GENL_HDRLEN, len(m)):], func(typ uint16, v []byte) error {
			if typ == unix.CTRL_ATTR_FAMILY_ID && len(v) == 2 {
				id = binary.NativeEndian.Uint16(v)
			}
			return nil
		})
	})
	switch {
	case err != nil:
		return 0, fmt.Errorf("find family %s: %w", unix.WG_GENL_NAME, err)
	case id == 0:
		return 0, fmt.Errorf("find family %s: no number in the answer: %w", unix.WG_GENL_NAME, malformed)
	}
	return id, nil
}

// control configures devices through netlink.
type control struct {
	keyed  *nl.Keyed
	family uint16
}

// Close implements wg.Control.
func (c *control) Close() error {
	c.keyed.Close()
	return nil
}

// Device implements wg.Control.
func (c *control) Device(name string) (*wgtypes.Device, error) {
	d := &wgtypes.Device{Type: wgtypes.LinuxKernel}
	var malformed error
	err := c.keyed.Dump(c.family, encodeGet(name), func(m []byte) {
		malformed = errors.Join(malformed, decodeInto(d, m))
	})
	if err = errors.Join(err, malformed); err != nil {
		wg.WipePeers(d.Peers)
		return nil, err
	}
	return d, nil
}

// ConfigureDevice implements wg.Control.
func (c *control) ConfigureDevice(name string, cfg wgtypes.Config) error {
	messages, err := encodeSet(name, cfg)
	if err != nil {
		return err
	}
	defer wipe(messages)
	for _, m := range messages {
		if err := c.keyed.Do(c.family, m, nil); err != nil {
			return err
		}
	}
	return nil
}
