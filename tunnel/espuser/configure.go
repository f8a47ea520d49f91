package espuser

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// exchange sends one request and returns the body of the answer.
func exchange(c net.Conn, k kind, body []byte) ([]byte, error) {
	if err := writeMessage(c, k, body); err != nil {
		return nil, err
	}
	got, answer, err := readMessage(c)
	switch {
	case err != nil:
		return nil, err
	case got == kindFailed:
		return nil, fmt.Errorf("it answers: %s", answer)
	case got != kindAnswer:
		return nil, fmt.Errorf("%w: kind %d", errMessage, got)
	}
	return answer, nil
}

// check returns what a device's worker has, or why the worker is not as it should be.
func (d *driver) check(ctx context.Context, name string) (state, error) {
	body, err := d.workers.Check(ctx, name, func(c net.Conn) ([]byte, error) { return exchange(c, kindGet, nil) })
	if err != nil {
		return state{}, err
	}
	return decodeState(body)
}

// request is a peer that a worker is to have, and with which secret.
type request struct {
	peer   ids.NodeID
	secret keys.TunnelSecret
	wanted
}

// configure tells a device's worker, which has what have says, whom it is to have.
func (d *driver) configure(name string, dev tunnel.Device, peers []tunnel.Peer, have state) error {
	requests, errs := d.requests(dev, peers)
	body := d.encode(name, dev.Port, requests, have)
	defer clear(body)
	err := d.workers.Ask(name, func(c net.Conn) error {
		answer, err := exchange(c, kindSet, body)
		if err != nil {
			return err
		}
		if len(answer) != len(requests) {
			return fmt.Errorf("%w: %d verdicts on %d peers", errMessage, len(answer), len(requests))
		}
		for i, v := range answer {
			if verdict(v) != verdictDone {
				err := fmt.Errorf("device %s: %w", name, tunnel.ErrSecretGone)
				errs = append(errs, &tunnel.PeerError{Peer: requests[i].peer, Err: err})
			}
		}
		return nil
	})
	return errors.Join(append(errs, err)...)
}

// requests lists the peers of one device.
func (d *driver) requests(dev tunnel.Device, peers []tunnel.Peer) ([]request, []error) {
	var out []request
	var errs []error
	for _, p := range peers {
		for _, k := range p.Keys {
			if k.Epoch != dev.Epoch || k.Lane != dev.Lane {
				continue
			}
			why := ""
			switch {
			case k.Key == 0 || k.ESP == (tunnel.ESP{}):
				why = "names no ESP associations"
			case !k.ESP.InUDP:
				why = "is to travel as it is, and this driver sends in UDP only"
			case k.ESP.Port == 0: // each device of this driver has its own, and so have the peers' records
				why = "names no UDP port"
			}
			if why != "" {
				err := fmt.Errorf("epoch %d lane %d: %s", k.Epoch, k.Lane, why)
				errs = append(errs, &tunnel.PeerError{Peer: p.ID, Err: err})
				continue
			}
			out = append(out, request{peer: p.ID, secret: k.Secret, wanted: wanted{
				inner: p.Inner, key: k.Key, in: k.ESP.In, out: k.ESP.Out,
				local:  netip.AddrPortFrom(k.ESP.Local, dev.Port),
				remote: netip.AddrPortFrom(k.ESP.Remote, k.ESP.Port),
			}})
		}
	}
	return out, errs
}

// encode makes the request. Key material is derived here, for the halves that the worker lacks
// and that no worker ever had, from the node that sends to the node that receives; the caller
// clears it.
func (d *driver) encode(name string, port uint16, requests []request, have state) []byte {
	has := map[netip.Addr]peer{}
	for _, p := range have.peers {
		has[p.inner] = p
	}
	all := make([]wanted, len(requests))
	for i, r := range requests {
		old := has[r.inner]
		same := old.key == r.key && old.in == r.in && old.local.Addr() == r.local.Addr() && old.remote == r.remote
		w := r.wanted
		if !same && d.first(name, use{r.key, r.in, false}, r.secret) {
			r.secret.ExposeESP(r.peer, d.env.Node, r.in, func(m []byte) { w.inMaterial = append([]byte(nil), m...) })
		}
		if r.out != 0 && (!same || old.out != r.out) && d.first(name, use{r.key, r.out, true}, r.secret) {
			r.secret.ExposeESP(d.env.Node, r.peer, r.out, func(m []byte) { w.outMaterial = append([]byte(nil), m...) })
		}
		all[i] = w
	}
	body := encodeSet(port, all)
	for _, w := range all {
		clear(w.inMaterial)
		clear(w.outMaterial)
	}
	return body
}

// first reports whether a half may be given to a worker, and takes note of it: also if the worker
// does not answer then, since it may have got it. A second time sequence numbers would begin again
// (see builder.first).
func (d *driver) first(name string, u use, secret keys.TunnelSecret) bool {
	if secret.IsZero() || d.used[name][u] {
		return false
	}
	if d.used[name] == nil {
		d.used[name] = map[use]bool{}
	}
	d.used[name][u] = true
	return true
}
