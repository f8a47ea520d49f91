package noisenet

import (
	"crypto/rand"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

func BenchmarkHandshakeBothSides(b *testing.B) {
	c := newTestCluster(1)
	pa, pb := c.node(10).party(), c.node(20).party()
	for b.Loop() {
		if _, _, err := shake(pa, pb, ids.NodeID{}, nil); err != nil {
			b.Fatal(err)
		}
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
