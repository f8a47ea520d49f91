package wg

import (
	"errors"
	"fmt"
	"slices"

	"github.com/secure-overlay/secure-overlay/tunnel"
)

// Usable returns the part of spec that a WireGuard driver can apply, and the
// joined errors about the rest: the rules that all drivers share, and that a
// device needs a UDP port and a peer a public key.
func Usable(spec tunnel.Spec) (tunnel.Spec, error) {
	out, err := spec.Usable()
	errs := []error{err}
	out.Devices = slices.DeleteFunc(out.Devices, func(d tunnel.Device) bool {
		if d.Port == 0 {
			errs = append(errs, fmt.Errorf("device of epoch %d lane %d: has no port", d.Epoch, d.Lane))
		}
		return d.Port == 0
	})
	for i, p := range out.Peers {
		// Keys are Usable's own copy, so they may be changed.
		out.Peers[i].Keys = slices.DeleteFunc(p.Keys, func(k tunnel.PeerKey) bool {
			if k.Public.IsZero() {
				errs = append(errs, &tunnel.PeerError{Peer: p.ID, Err: errors.New("has no public key")})
			}
			return k.Public.IsZero()
		})
	}
	return out, errors.Join(errs...)
}
