package wg

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"slices"

	"golang.zx2c4.com/wireguard/wgctrl/wgtypes"

	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/links"
)

// device is a device as read back.
type device struct {
	*wgtypes.Device
	keyed bool // it has a private key
}

// readDevice reads a device. The caller wipes the preshared keys when it has
// named them.
func readDevice(ctl Control, name string) (device, error) {
	dev, err := ctl.Device(name)
	if err != nil {
		return device{}, fmt.Errorf("read device %s: %w", name, err)
	}
	return device{Device: dev, keyed: dev.PublicKey != wgtypes.Key{}}, nil
}

// wipe clears the preshared keys.
func (d device) wipe() { WipePeers(d.Peers) }

// WipePeers clears the preshared keys of peers as read back.
func WipePeers(peers []wgtypes.Peer) {
	for i := range peers {
		clear(peers[i].PresharedKey[:])
	}
}

// GrowPeers returns peers with one more, which is zero, and clears the
// preshared keys in the memory that they leave.
func GrowPeers(peers []wgtypes.Peer) []wgtypes.Peer {
	if len(peers) == cap(peers) {
		larger := append(make([]wgtypes.Peer, 0, 2*len(peers)+8), peers...)
		WipePeers(peers)
		peers = larger
	}
	peers = peers[:len(peers)+1]
	peers[len(peers)-1] = wgtypes.Peer{}
	return peers
}

// makeKey gives a device a fresh private key. It is made here, handed to the
// device and forgotten: no file, no spec and no log ever holds it, so a key
// epoch ends for good when its device is deleted.
func makeKey(ctl Control, name string) error {
	// wgtypes.GeneratePrivateKey would leave a copy.
	key := new(wgtypes.Key)
	defer clear(key[:])
	_, _ = rand.Read(key[:]) // cannot fail
	// The form of a private key (RFC 7748 section 5).
	key[0] &= 248
	key[31] = key[31]&127 | 64
	if err := ctl.ConfigureDevice(name, wgtypes.Config{PrivateKey: key}); err != nil {
		return fmt.Errorf("set key of device %s: %w", name, err)
	}
	return nil
}

// State implements tunnel.Driver. A device that does not answer is reported
// without its peers, together with an error.
func (d *Driver) State(ctx context.Context) (tunnel.State, error) {
	have, err := d.links()
	if err != nil || len(have) == 0 {
		return tunnel.State{}, err
	}
	ctl, err := d.o.Maker.Control()
	if err != nil {
		return tunnel.State{}, fmt.Errorf("read devices: %w", err)
	}
	defer func() { _ = ctl.Close() }()
	var out tunnel.State
	var errs []error
	for _, name := range links.Names(have) {
		l := have[name]
		if l.Mark == (tunnel.Mark{}) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return out, err
		}
		s := tunnel.DeviceState{
			Name: name, Epoch: l.Mark.Epoch, Lane: l.Mark.Lane,
			MTU: l.Attrs().MTU, Up: l.Attrs().Flags&net.FlagUp != 0,
		}
		errs = append(errs, d.readState(ctx, ctl, &s))
		out.Devices = append(out.Devices, s)
	}
	slices.SortFunc(out.Devices, func(a, b tunnel.DeviceState) int {
		return cmp.Or(cmp.Compare(a.Epoch, b.Epoch), cmp.Compare(a.Lane, b.Lane))
	})
	return out, errors.Join(errs...)
}

// readState fills in what WireGuard knows of the device.
func (d *Driver) readState(ctx context.Context, ctl Control, s *tunnel.DeviceState) error {
	if err := d.o.Maker.Check(ctx, s.Name); err != nil {
		return fmt.Errorf("read device %s: %w", s.Name, err)
	}
	dev, err := readDevice(ctl, s.Name)
	if err != nil {
		return err
	}
	defer dev.wipe()
	if dev.keyed {
		s.Public = keys.TunnelPublic(dev.PublicKey)
	}
	s.Port = uint16(dev.ListenPort)
	for i := range dev.Peers {
		p := &dev.Peers[i]
		key := keys.TunnelPublic(p.PublicKey)
		s.Peers = append(s.Peers, tunnel.PeerState{
			ID: d.owners[key], Inner: InnerOf(p), Public: key, Key: KeyIDOf(p), Endpoint: endpointOf(p),
			LastHandshake: p.LastHandshakeTime,
			RxBytes:       uint64(p.ReceiveBytes), TxBytes: uint64(p.TransmitBytes),
		})
	}
	slices.SortFunc(s.Peers, func(a, b tunnel.PeerState) int { return slices.Compare(a.Public[:], b.Public[:]) })
	return nil
}
