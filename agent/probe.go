package agent

import (
	"context"
	"net/netip"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
)

// startProbe sends a pair's proof through its device: three small echoes, each
// of which may be lost twice, and one of the largest packet that the networks
// of the pair send.
func (l *loop) startProbe(ctx context.Context, p rotate.Probe) {
	d, ok := l.facts.device(p.Epoch)
	if !ok || l.rot.prober == nil || !l.rot.flying.begin(flight{peer: p.Peer, probe: p}) {
		return
	}
	from, to := l.identity.ID.InnerAddr(), p.Peer.InnerAddr()
	frame := d.MTU
	for _, v := range l.out.View.Peers {
		if v.ID == p.Peer && v.Frame > 0 {
			frame = min(frame, v.Frame)
		}
	}
	have, _ := l.facts.installed(p.Peer, p.Epoch)
	// The networks become narrower when the small ones have passed. The large
	// one waits for that.
	wide := d.Forms && have.InUDP && !l.narrowed()
	l.work(ctx, func(ctx context.Context) func(*loop) {
		r := rotate.ProbeResult{Probe: p}
		err := l.echo(ctx, d.Name, from, to, smallProbe, 3)
		if r.Small = err == nil; r.Small && !wide {
			err = l.echo(ctx, d.Name, from, to, frame, 1)
			r.Full = err == nil
		}
		return func(l *loop) {
			l.rot.flying.end(flight{peer: p.Peer, probe: p})
			if err != nil {
				l.log.Debug("probe not answered", logkey.Node, p.Peer, logkey.Epoch, p.Epoch, logkey.Error, err)
			}
			if r.Small {
				l.rot.echoes[p.Peer] = l.now()
				l.rot.forms.passed[p.Key] = true
			}
			l.rot.machine.Probed(l.now(), r)
		}
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
