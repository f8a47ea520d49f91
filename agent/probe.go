package agent

import (
	"context"
	"net/netip"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
)

// startProbe sends a pair's proof through its device: three small echoes, each
// of which may be lost twice, then one of the largest packet that the networks
// of the pair send.
func (l *loop) startProbe(ctx context.Context, p rotate.Probe) {
	d, ok := l.facts.device(p.Epoch)
	if !ok || l.rot.prober == nil || !l.rot.flying.begin(flight{peer: p.Peer, probe: p}) {
		return
	}
	l.startEchoes(ctx, p, d.Name, smallProbe, 3, func(l *loop, err error) {
		frame, wanted := l.largeProbe(p)
		if err != nil || !wanted {
			l.probed(rotate.ProbeResult{Probe: p, Small: err == nil}, err)
			return
		}
		l.startEchoes(ctx, p, d.Name, frame, 1, func(l *loop, err error) {
			l.probed(rotate.ProbeResult{Probe: p, Small: true, Full: err == nil}, err)
		})
	})
}

// largeProbe returns the size of a probe's large packet, false if there is to
// be none now. Where a pair has just come to ESP in UDP its networks may have to
// become narrower first. That goes for a key, too, that has taken the place of the
// probed one meanwhile, and answered in its stead: a packet that is too large for
// one device would make the kernel cut what it sends to the peer through any.
func (l *loop) largeProbe(p rotate.Probe) (frame int, wanted bool) {
	d, ok := l.facts.device(p.Epoch)
	have, installed := l.facts.installed(p.Peer, p.Epoch)
	if !ok || !installed || have.Key != p.Key || d.Narrows && have.InUDP && !l.narrowed() {
		return 0, false
	}
	frame = d.MTU
	for _, v := range l.out.View.Peers {
		if v.ID == p.Peer && v.Frame > 0 {
			frame = min(frame, v.Frame)
		}
	}
	return frame, true
}

// probed hands what a probe found to the machine.
func (l *loop) probed(r rotate.ProbeResult, err error) {
	l.rot.flying.end(flight{peer: r.Peer, probe: r.Probe})
	if err != nil {
		l.log.Debug("probe not answered", logkey.Node, r.Peer, logkey.Epoch, r.Epoch, logkey.Error, err)
	}
	if r.Small {
		l.rot.echoes[r.Peer] = l.now()
		l.rot.forms.passed[r.Key] = true
	}
	l.rot.machine.Probed(l.now(), r)
}

// startEchoes sends n echoes of a size to a peer through a device and hands the
// outcome to then, in the loop.
func (l *loop) startEchoes(ctx context.Context, p rotate.Probe, device string, size, n int, then func(*loop, error)) {
	from, to := l.identity.ID.InnerAddr(), p.Peer.InnerAddr()
	l.work(ctx, func(ctx context.Context) func(*loop) {
		err := l.echo(ctx, device, from, to, size, n)
		return func(l *loop) { then(l, err) }
	})
}

// Sizes and times of probes.
const (
	smallProbe   = 128 // bytes of IPv6 packet
	echoTimeout  = time.Second
	echoAttempts = 3
)

// echo wants n echoes of a size to come back, each within three attempts.
func (l *loop) echo(ctx context.Context, device string, from, to netip.Addr, size, n int) error {
	for range n {
		var err error
		for range echoAttempts {
			attempt, cancel := context.WithTimeout(ctx, echoTimeout)
			err = l.rot.prober.Probe(attempt, device, from, to, size)
			cancel()
			if err == nil || ctx.Err() != nil {
				break
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
