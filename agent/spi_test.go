package agent

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// TestCheckSPI: one peer's SPI is not taken from another, whether the kernel
// has it or it is about to get it.
func TestCheckSPI(t *testing.T) {
	peer, other := ids.NodeID{1}, ids.NodeID{2}
	l := &loop{
		facts: TunnelFacts{Devices: []OwnDevice{{
			Driver: config.DriverIPsec, Wire: record.WireESP, DeviceState: tunnel.DeviceState{Epoch: 2, Up: true, Peers: []tunnel.PeerState{
				{Inner: peer.InnerAddr(), In: 0x1001, Out: 0x1002}, {Inner: other.InnerAddr(), In: 0x2001, Out: 0x2002},
			}},
		}}},
		rot: rotation{held: map[heldKey]Held{{peer, 3}: {Out: 0x1003}, {other, 3}: {Out: 0x2003}}},
	}
	for _, c := range []struct {
		name string
		spi  ids.SPI
		ok   bool
	}{
		{"none, as of WireGuard", 0, true},
		{"a new one", 0x3000, true},
		{"its own, installed", 0x1002, true},
		{"its own, held", 0x1003, true},
		{"another's, installed", 0x2002, false},
		{"another's, held", 0x2003, false},
		{"one under which this node receives from another", 0x2001, true},
	} {
		if err := l.checkSPI(peer, c.spi); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// outTo is the SPI under which a node sends to another.
func (m *machine) outTo(id ids.NodeID, e ids.Epoch) (out ids.SPI) {
	m.look(func(l *loop) {
		have, _ := l.facts.installed(id, e)
		out = have.Out
	})
	return out
}

// TestStolenSPIOffered: a member that offers the SPI of another, at the other's
// address, gets no secret, and the other's association stays.
func TestStolenSPIOffered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, victim, c := w.machine(1, blue()), w.machine(2, blue()), w.machine(3, blue())
		for _, m := range []*machine{a, victim, c} {
			m.ipsec = true
			m.start()
		}
		w.until("epoch 1", func() bool { return a.on(1, 2) && victim.on(1, 2) && c.on(1, 2) })
		c.rotate(api.RotateRequest{Driver: config.DriverIPsec})
		w.until("epoch 2", func() bool { return a.on(2, 2) && victim.on(2, 2) && c.on(2, 2) })
		out := c.outTo(victim.id, 2)

		r := a.rogue()
		w.board.set(func() {
			m := w.board.members[r.self.ID]
			m.Record.Underlay = slices.Clone(m.Record.Underlay) // others read the former
			m.Record.Underlay[0].Control = v4(2)
			m.Record.Seq++
			w.board.members[r.self.ID] = m
			w.board.wake()
		})
		<-time.After(time.Second)
		r.settle(t, c.id)
		offer := w.board.offer(r.self.ID, c.id)
		offer.SPI = out
		if _, _, _, err := r.Agree(context.Background(), c.id, offer.Encode()); err == nil || !strings.Contains(err.Error(), "of another peer") {
			t.Errorf("agreed on the SPI of another: %v", err)
		}
		if n := c.secretsHeld(); n != 0 {
			t.Errorf("%d secrets held", n)
		}
		// Nothing else was wrong with the offer.
		offer.SPI = out ^ 1
		_, secret, _, err := r.Agree(context.Background(), c.id, offer.Encode())
		if err != nil {
			t.Fatal(err)
		}
		r.say(t, c.id, rotate.EpochState{Epoch: 2, Mine: 1, Yours: 1, Key: secret.ID()})
		w.until("the secret is installed", func() bool { return c.outTo(r.self.ID, 2) == offer.SPI })
		secret.Wipe()
		if got := c.outTo(victim.id, 2); got != out || epochTo(c, victim) != 2 || epochTo(victim, c) != 2 {
			t.Errorf("the other peer has SPI %s, had %s; epochs %d, %d", got, out, epochTo(c, victim), epochTo(victim, c))
		}
	})
}

// liar answers for one peer with the SPI that another has consented to.
type liar struct {
	pairs
	peer, victim ids.NodeID

	mu     sync.Mutex // guards all below
	honest bool
	stolen ids.SPI // of the victim
	lies   int
}

func (p *liar) Agree(ctx context.Context, to ids.NodeID, req []byte) ([]byte, keys.TunnelSecret, bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	offer, err := rotate.ParseOffer(req)
	if err != nil {
		return nil, keys.TunnelSecret{}, false, err
	}
	lie := to == p.peer && !p.honest && offer.SPI != 0
	if lie && p.stolen == 0 {
		return nil, keys.TunnelSecret{}, false, noisenet.ErrUnreachable // not yet
	}
	answer, secret, hybrid, err := p.pairs.Agree(ctx, to, req)
	if err != nil {
		return answer, secret, hybrid, err
	}
	if lie {
		p.lies++
		return rotate.Consent{SPI: p.stolen}.Encode(), secret, hybrid, nil
	}
	if consent, err := rotate.ParseConsent(answer); err == nil && to == p.victim {
		p.stolen = consent.SPI
	}
	return answer, secret, hybrid, nil
}

// told is the SPI that it lies about, and how often it has.
func (p *liar) told() (ids.SPI, int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stolen, p.lies
}

// TestStolenSPIConsented: a member that consents with the SPI of another stays
// where it is, and the other goes on.
func TestStolenSPIConsented(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, victim, c := w.machine(1, blue()), w.machine(2, blue()), w.machine(3, blue())
		for _, m := range []*machine{a, victim, c} {
			m.ipsec = true
			m.cfg.Control.Profile = config.ProfileLocal // short pauses between attempts
			m.start()
		}
		w.until("epoch 1", func() bool { return a.on(1, 2) && victim.on(1, 2) && c.on(1, 2) })
		p := &liar{peer: c.id, victim: victim.id}
		a.look(func(l *loop) { p.pairs, l.rot.pairs = l.rot.pairs, p })
		a.rotate(api.RotateRequest{Driver: config.DriverIPsec})
		w.until("lies, and the pair with the other", func() bool {
			_, lies := p.told()
			return lies >= 2 && epochTo(a, victim) == 2 && epochTo(victim, a) == 2
		})
		stolen, _ := p.told()
		w.watch("nothing of the lies", time.Second, func() bool {
			return a.outTo(victim.id, 2) == stolen && a.outTo(c.id, 2) == 0 && a.secretsHeld() == 0 && epochTo(a, c) == 1
		})
		p.mu.Lock()
		p.honest = true
		p.mu.Unlock()
		w.until("all on epoch 2", func() bool { return a.on(2, 2) && victim.on(2, 2) && c.on(2, 2) })
	})
}
