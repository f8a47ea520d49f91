package agent

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// offer describes both devices of a pair, as this node's kernel and the peer's
// signed record have them.
func (in Input) offer(w rotate.Wanted) (rotate.Offer, error) {
	own, ok := in.Tunnels.device(w.Epoch)
	if !ok {
		return rotate.Offer{}, fmt.Errorf("offer a secret of epoch %d: this node has no device", w.Epoch)
	}
	their, ok := in.theirs(w.Peer, w.Epoch)
	m := own.meet(their)
	if !ok || !m.ok {
		return rotate.Offer{}, fmt.Errorf("offer node %s a secret of epoch %d: it has no such device", w.Peer, w.Epoch)
	}
	return rotate.Offer{
		Epoch: w.Epoch, Lane: lane, Wire: uint8(m.wire), Mine: w.Mine, Yours: w.Theirs,
		MyKey: own.Public, YourKey: their.Public,
	}, nil
}

// theirs returns a member's device of an epoch.
func (in Input) theirs(id ids.NodeID, epoch ids.Epoch) (record.Tunnel, bool) {
	for _, m := range in.Members {
		if m.ID != id {
			continue
		}
		for _, t := range theirTunnels(m.Record) {
			if t.Epoch == epoch && t.Lane == lane {
				return t, true
			}
		}
	}
	return record.Tunnel{}, false
}

// startAgree asks a peer for a secret on a stream of its own.
func (l *loop) startAgree(ctx context.Context, in Input, w rotate.Wanted) {
	if !l.rot.flying.begin(flight{peer: w.Peer, agree: w}) {
		return
	}
	offer, err := in.offer(w)
	if err == nil && record.Wire(offer.Wire).ESP() {
		offer.SPI = l.freeSPI()
		l.chooseForm(in, w, &offer)
	}
	if err != nil {
		l.rot.flying.end(flight{peer: w.Peer, agree: w})
		l.log.Debug("no secret offered", logkey.Node, w.Peer, logkey.Error, err)
		l.rot.machine.AgreeFailed(l.now(), w)
		return
	}
	var secret keys.TunnelSecret
	l.workOr(ctx, func(ctx context.Context) func(*loop) {
		var answer []byte
		var hybrid bool
		var err error
		answer, secret, hybrid, err = l.rot.pairs.Agree(ctx, w.Peer, offer.Encode())
		var consent rotate.Consent
		if err == nil {
			consent, err = rotate.ParseConsent(answer)
		}
		return func(l *loop) {
			l.rot.flying.end(flight{peer: w.Peer, agree: w})
			if err == nil {
				err = l.checkSPI(w.Peer, consent.SPI)
			}
			if err != nil {
				secret.Wipe()
				l.log.Debug("no secret agreed", logkey.Node, w.Peer, logkey.Epoch, w.Epoch, logkey.Error, err)
				l.rot.forms.refuse(w.Peer, offer, err)
				l.rot.machine.AgreeFailed(l.now(), w)
				return
			}
			l.agreed(w, Held{Secret: secret, In: offer.SPI, Out: consent.SPI, InUDP: inUDP(offer)}, hybrid)
		}
	}, func() { secret.Wipe() })
}

// agreed takes over a secret that both ends have, if the machine has a use for
// it. The loop holds it until the kernel has it.
func (l *loop) agreed(w rotate.Wanted, h Held, hybrid bool) {
	h.Key = h.Secret.ID()
	taken := l.rot.machine.Agreed(l.now(), w.Peer, rotate.Agreement{Epoch: w.Epoch, Mine: w.Mine, Theirs: w.Theirs, Key: h.Key})
	if !taken {
		h.Secret.Wipe()
		return
	}
	choice := l.lastIn.meeting(w.Peer, w.Epoch).choice
	if have, ok := l.facts.installed(w.Peer, w.Epoch); ok && choice && have.InUDP != h.InUDP {
		l.noteSilent(w.Peer, w.Epoch, have.InUDP) // the asking node may have given it up first
	}
	at := heldKey{w.Peer, w.Epoch}
	if old, ok := l.rot.held[at]; ok {
		old.Secret.Wipe()
	}
	l.rot.held[at] = h
	l.rot.hybrid[h.Key] = hybrid
	l.log.Debug("secret agreed", logkey.Node, w.Peer, logkey.Epoch, w.Epoch, logkey.Key, h.Key, logkey.Hybrid, hybrid)
	l.soon = true
}

// wipe ends with the loop: what was agreed on and not installed is lost, and
// the next agent agrees on another.
func (l *loop) wipe() {
	for _, h := range l.rot.held {
		h.Secret.Wipe()
	}
	clear(l.rot.held)
}

// checkSPI refuses an SPI under which this node sends to another peer already.
// It is readable on the wire: a member that named another's address and SPI as
// its own would take that association out of the kernel. By chance two are
// equal once in 2^32 agreements, and the next attempt has another.
func (l *loop) checkSPI(peer ids.NodeID, spi ids.SPI) error {
	if spi == 0 {
		return nil
	}
	taken := false
	for _, d := range l.facts.Devices {
		for _, p := range d.Peers {
			taken = taken || p.Out == spi && p.Inner != peer.InnerAddr()
		}
	}
	for at, h := range l.rot.held {
		taken = taken || h.Out == spi && at.Peer != peer
	}
	if taken {
		return fmt.Errorf("agree with node %s: SPI %s is that of another peer", peer, spi)
	}
	return nil
}

// takeTimeout bounds how long an answer to an AGREE waits for the loop.
const takeTimeout = 10 * time.Second

// agree answers a peer that asks for a secret; it is membership's handler. The
// secret depends on every byte of request and answer, so a peer that describes
// other devices than this node sees gets nothing that fits.
func (a *Agent) agree(ctx context.Context, from ids.NodeID, hybrid bool, req []byte) (resp []byte, take func(keys.TunnelSecret), err error) {
	offer, err := rotate.ParseOffer(req)
	if err != nil {
		return nil, nil, err
	}
	w := rotate.Wanted{Peer: from, Epoch: offer.Epoch, Mine: offer.Yours, Theirs: offer.Mine}
	h := Held{Out: offer.SPI, InUDP: inUDP(offer)}
	doErr := a.do(ctx, func(_ context.Context, l *loop) {
		if err = l.mayAgree(w, offer); err == nil && record.Wire(offer.Wire).ESP() {
			h.In = l.freeSPI()
		}
	})
	if doErr != nil || err != nil {
		if err == nil {
			err = doErr
		}
		return nil, nil, err
	}
	take = func(secret keys.TunnelSecret) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), takeTimeout)
		defer cancel()
		h.Secret = secret
		if err := a.do(ctx, func(_ context.Context, l *loop) { l.agreed(w, h, hybrid) }); err != nil {
			secret.Wipe()
		}
	}
	return rotate.Consent{SPI: h.In}.Encode(), take, nil
}

// mayAgree compares an offer with what this node knows of both devices.
func (l *loop) mayAgree(w rotate.Wanted, offer rotate.Offer) error {
	wire, err := l.wireFor(w, offer)
	if err != nil {
		return err // first, since it is what the asking node's user has to know
	}
	if err := l.rot.machine.MayAgree(w.Peer, w); err != nil {
		return err
	}
	mine, err := l.lastIn.offer(w)
	if err != nil {
		return err
	}
	if offer.Lane != lane || offer.Wire != uint8(wire) || offer.MyKey != mine.YourKey || offer.YourKey != mine.MyKey {
		return fmt.Errorf("agree with node %s on epoch %d: it describes other devices than this node knows", w.Peer, w.Epoch)
	}
	if err := l.checkSPI(w.Peer, offer.SPI); err != nil {
		return err
	}
	if (offer.SPI != 0) != (record.Wire(offer.Wire).ESP()) {
		return fmt.Errorf("agree with node %s on epoch %d: %w", w.Peer, w.Epoch, rotate.ErrOffer)
	}
	return nil
}

// freeSPI draws an SPI under which nothing of this node's is received. The
// kernel's table may hold foreign ones: adding the association then fails, and
// the pair agrees anew.
func (l *loop) freeSPI() ids.SPI {
	used := map[ids.SPI]bool{}
	for _, d := range l.facts.Devices {
		for _, p := range d.Peers {
			used[p.In] = true
		}
	}
	for _, h := range l.rot.held {
		used[h.In] = true
	}
	for {
		var b [4]byte
		_, _ = rand.Read(b[:]) // never fails since Go 1.24
		if s := ids.SPI(binary.BigEndian.Uint32(b[:])); s.Valid() && !used[s] {
			return s
		}
	}
}
