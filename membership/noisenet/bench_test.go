package noisenet

import (
	"context"
	"crypto/rand"
	"fmt"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

func BenchmarkHandshakeBothSides(b *testing.B) {
	c := newTestCluster(1)
	pa, pb := c.node(10).party(), c.node(20).party()
	for v := uint8(versionMin); v <= versionMax; v++ {
		b.Run(fmt.Sprintf("version=%d", v), func(b *testing.B) {
			pa.versionMax = v
			b.ReportAllocs()
			for b.Loop() {
				if _, _, err := shake(pa, pb, ids.NodeID{}, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkHybridOffer, Answer and Finish are the three operations of the
// hybrid step, with their frames and key derivations.
func BenchmarkHybridOffer(b *testing.B) {
	i, _ := hybridPair()
	for b.Loop() {
		must(i.offer(newKEM()))
	}
}

// BenchmarkHybridAnswer is the responder's part.
func BenchmarkHybridAnswer(b *testing.B) {
	i, r := hybridPair()
	m4 := must(i.offer(newKEM()))
	for b.Loop() {
		if _, _, err := r.answer(newKEM(), m4[2:]); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHybridFinish is the initiator's second part.
func BenchmarkHybridFinish(b *testing.B) {
	i, r := hybridPair()
	m5, _, err := r.answer(newKEM(), must(i.offer(newKEM()))[2:])
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		must(i.finish(m5[2:]))
	}
}

// BenchmarkAgree is one tunnel secret between two nodes on loopback: TCP
// connect, handshake, exchange.
func BenchmarkAgree(b *testing.B) {
	c := newTestCluster(1)
	for v := uint8(versionMin); v <= versionMax; v++ {
		b.Run(fmt.Sprintf("version=%d", v), func(b *testing.B) {
			edit := func(cfg *Config) {
				cfg.versionMax = v
				cfg.limits.bucketRate, cfg.limits.bucketBurst = 1e6, 1e6
				cfg.Agree = func(context.Context, Peer, []byte) ([]byte, func(keys.TunnelSecret), error) {
					return nil, nil, nil
				}
			}
			x, y := start(b, c.node(10), edit), start(b, c.node(20), edit)
			x.dir.set(y.node.id, y.addr())
			for b.Loop() {
				must(x.Agree(context.Background(), y.node.id, nil))
			}
		})
	}
}

// BenchmarkOutsider is what a stranger's message 1 costs a responder.
func BenchmarkOutsider(b *testing.B) {
	c := newTestCluster(1)
	p := c.node(20).party()
	h := header{min: 1, max: 1, kind: streamMember, keyID: p.keyID}
	m1 := make([]byte, helloSize)
	_, _ = rand.Read(m1)
	for b.Loop() {
		r := must(newResponder(p, h))
		if _, _, err := r.step(time.Now(), m1); err == nil {
			b.Fatal("accepted")
		}
	}
}

func BenchmarkDatagram(b *testing.B) {
	now := time.Now()
	var s secret
	fwd, _, err := openContext{number: 1, opener: 1, answerer: 2}.keys(&s)
	if err != nil {
		b.Fatal(err)
	}
	payload := make([]byte, maxPacket)
	out := &datagramSession{send: fwd, remote: 2, created: now}
	in := &datagramSession{recv: fwd, local: 2, created: now}
	b.SetBytes(int64(len(payload)))
	for b.Loop() {
		out.counter &= 1<<20 - 1
		if out.counter == 0 {
			in.window = replayWindow{}
		}
		d := must(out.seal(now, payload))
		h := must(parseDatagram(d))
		if _, _, err := in.open(now, h, d); err != nil {
			b.Fatal(err)
		}
	}
}
