package noisenet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// shake runs a whole handshake between two parties and returns both results,
// or the first error. tamper may change each message on its way.
func shake(a, b *party, expect ids.NodeID, tamper func(n int, msg []byte) []byte) (ea, eb *established, err error) {
	return shakeAt(time.Now(), a, b, expect, tamper)
}

func shakeAt(now time.Time, a, b *party, expect ids.NodeID, tamper func(n int, msg []byte) []byte) (ea, eb *established, err error) {
	if tamper == nil {
		tamper = func(_ int, m []byte) []byte { return m }
	}
	hi, first, err := newInitiator(a, expect)
	if err != nil {
		return nil, nil, err
	}
	offered, err := parseHeader(tamper(0, first[:headerSize]))
	if err != nil {
		return nil, nil, err
	}
	hr, err := newResponder(b, offered)
	if err != nil {
		return nil, nil, err
	}
	m2, _, err := hr.step(now, tamper(1, first[headerSize+2:]))
	if err != nil {
		return nil, nil, err
	}
	out, ea, err := hi.step(now, tamper(2, m2[2:]))
	if err != nil {
		return nil, nil, err
	}
	m3, m4 := cutMessage(out)
	_, eb, err = hr.step(now, tamper(3, m3))
	if err != nil || ea != nil {
		return ea, eb, err
	}
	m4, _ = cutMessage(m4)
	out, eb, err = hr.step(now, tamper(4, m4))
	if err != nil {
		return nil, nil, err
	}
	m5, _ := cutMessage(out)
	_, ea, err = hi.step(now, tamper(5, m5))
	return ea, eb, err
}

// cutMessage takes the first message, without its length, off b.
func cutMessage(b []byte) (msg, rest []byte) {
	n := 2 + int(binary.BigEndian.Uint16(b))
	return b[2:n], b[n:]
}

func TestHandshake(t *testing.T) {
	c := newTestCluster(1)
	a, b := c.node(10), c.node(20)
	ea, eb, err := shake(a.party(), b.party(), b.id, nil)
	if err != nil {
		t.Fatal(err)
	}
	if ea.cert.ID() != b.id || eb.cert.ID() != a.id || ea.secret != eb.secret || ea.hash != eb.hash || !ea.initiator || eb.initiator {
		t.Error("the two sides do not agree")
	}
	e2, _, err := shake(a.party(), b.party(), b.id, nil)
	if err != nil {
		t.Fatal(err)
	}
	if e2.secret == ea.secret {
		t.Error("two handshakes gave one secret")
	}
}

// TestHandshakeRefusals: every way in which a peer may be wrong.
func TestHandshakeRefusals(t *testing.T) {
	c, other := newTestCluster(1), newTestCluster(61)
	a, b := c.node(10), c.node(20)
	foreign := other.node(30)
	thief := c.node(40)
	expired := func(cert *keys.Cert) {
		cert.NotBefore, cert.NotAfter = c.epoch.Add(-48*time.Hour), c.epoch.Add(-24*time.Hour)
	}
	for name, tc := range map[string]struct {
		a, b func(*party)
		want error
	}{
		"wrong access key":       {a: func(p *party) { p.access = other.access }, want: ErrHandshake},
		"other cluster's member": {a: func(p *party) { p.credential, p.static = foreign.credential, foreign.noise }, want: keys.ErrWrongCluster},
		"other cluster's responder": {
			b: func(p *party) { p.credential, p.static = foreign.credential, foreign.noise }, want: keys.ErrWrongCluster},
		"other cluster ID":    {a: func(p *party) { p.trust.Cluster = other.trust.Cluster }, want: ErrHandshake},
		"other root":          {a: func(p *party) { p.trust.Root = other.trust.Root }, want: keys.ErrBadSignature},
		"expired certificate": {a: func(p *party) { p.credential = c.certify(a, expired) }, want: keys.ErrExpired},
		"expired responder":   {b: func(p *party) { p.credential = c.certify(b, expired) }, want: keys.ErrExpired},
		"stolen certificate":  {a: func(p *party) { p.static = thief.noise }, want: ErrHandshake},
		"stolen by responder": {b: func(p *party) { p.static = thief.noise }, want: ErrHandshake},
		"self":                {a: func(p *party) { *p = *b.party() }, want: ErrSelf},
		"refused by initiator": {
			a: func(p *party) { p.refuse = func(c keys.Cert, _ keys.Credential) bool { return c.ID() == b.id } }, want: ErrRefused},
		"refused by responder": {
			b: func(p *party) { p.refuse = func(c keys.Cert, _ keys.Credential) bool { return c.ID() == a.id } }, want: ErrRefused},
	} {
		t.Run(name, func(t *testing.T) {
			pa, pb := a.party(), b.party()
			if tc.a != nil {
				tc.a(pa)
			}
			if tc.b != nil {
				tc.b(pb)
			}
			for _, p := range []*party{pa, pb} {
				if err := p.prepare(); err != nil {
					t.Fatal(err)
				}
			}
			_, eb, err := shake(pa, pb, ids.NodeID{}, nil)
			if err == nil || eb != nil {
				t.Fatal("handshake succeeded")
			}
			if tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("error %v, want %v", err, tc.want)
			}
		})
	}
	// A missing psk must not turn XXpsk0 into plain XX.
	for name, edit := range map[string]func(*party){
		"no access key": func(p *party) { p.access = keys.AccessKey{} },
		"no Noise key":  func(p *party) { p.static = keys.NoisePrivate{} },
	} {
		p := a.party()
		edit(p)
		if err := p.prepare(); err == nil {
			t.Errorf("%s: prepared", name)
		}
		if _, _, err := newInitiator(p, ids.NodeID{}); err == nil {
			t.Errorf("%s: began a handshake", name)
		}
	}
	if _, _, err := shake(a.party(), b.party(), thief.id, nil); !errors.Is(err, ErrWrongPeer) {
		t.Errorf("other node than expected: %v, want ErrWrongPeer", err)
	}
}

// TestHandshakeTampering flips every bit of header and messages.
func TestHandshakeTampering(t *testing.T) {
	c := newTestCluster(1)
	a, b := c.node(10).party(), c.node(20).party()
	var lengths [6]int
	if _, _, err := shake(a, b, ids.NodeID{}, func(n int, m []byte) []byte { lengths[n] = len(m); return m }); err != nil {
		t.Fatal(err)
	}
	for n, length := range lengths {
		step := 1
		if length > 100 {
			step = 23
		}
		for bit := 0; bit < 8*length; bit += step {
			ea, eb, err := shake(a, b, ids.NodeID{}, func(i int, m []byte) []byte {
				if i == n {
					m = append([]byte(nil), m...)
					m[bit/8] ^= 1 << (bit % 8)
				}
				return m
			})
			// After message 5 alone the responder believes in the stream. Its
			// peer has gone, and no frame will open.
			if err == nil || (eb != nil && (ea != nil || n < 5)) {
				t.Fatalf("message %d with bit %d flipped was accepted", n, bit)
			}
		}
	}
	for n, length := range lengths {
		if n == 0 {
			continue // the header has no length of its own
		}
		for _, cut := range []int{0, 1, 16, 31, 32, 47, length - 1} {
			ea, eb, err := shake(a, b, ids.NodeID{}, func(i int, m []byte) []byte {
				if i == n {
					return m[:cut]
				}
				return m
			})
			// After message 5 alone the responder believes in the stream. Its
			// peer has gone, and no frame will open.
			if err == nil || (eb != nil && (ea != nil || n < 5)) {
				t.Fatalf("message %d cut to %d bytes was accepted", n, cut)
			}
		}
	}
}

func TestHandshakeVersions(t *testing.T) {
	for _, tc := range []struct {
		min, max uint8
		want     uint8
	}{{1, 1, 1}, {1, 2, 2}, {1, 255, 2}, {2, 3, 2}, {3, 4, 0}} {
		v, err := header{min: tc.min, max: tc.max}.chooseVersion(versionMin, versionMax)
		if v != tc.want || (err != nil) != (tc.want == 0) {
			t.Errorf("range %d-%d: version %d, %v", tc.min, tc.max, v, err)
		}
		if tc.want == 0 && !errors.Is(err, ErrVersion) {
			t.Errorf("range %d-%d: %v, want ErrVersion", tc.min, tc.max, err)
		}
	}
}

// TestHandshakeDies: after an error, and after its end, a handshake refuses to
// go on.
func TestHandshakeDies(t *testing.T) {
	c := newTestCluster(1)
	a, b := c.node(10).party(), c.node(20).party()
	hi, first, err := newInitiator(a, ids.NodeID{})
	if err != nil {
		t.Fatal(err)
	}
	hr := must(newResponder(b, must(parseHeader(first[:headerSize]))))
	bad := append([]byte(nil), first[headerSize+2:]...)
	bad[0] ^= 1
	if _, _, err := hr.step(time.Now(), bad); err == nil {
		t.Fatal("bad message 1 was accepted")
	}
	if _, _, err := hr.step(time.Now(), first[headerSize+2:]); !errors.Is(err, errHandshakeDead) {
		t.Errorf("responder after an error: %v", err)
	}
	hr = must(newResponder(b, must(parseHeader(first[:headerSize]))))
	m2, _, err := hr.step(time.Now(), first[headerSize+2:])
	if err != nil {
		t.Fatal(err)
	}
	out, done, err := hi.step(time.Now(), m2[2:])
	if err != nil || done != nil {
		t.Fatalf("after message 2: established %v, %v", done != nil, err)
	}
	m3, m4 := cutMessage(out)
	if out, done, err := hr.step(time.Now(), m3); err != nil || done != nil || out != nil {
		t.Fatalf("after message 3: %d bytes, established %v, %v", len(out), done != nil, err)
	}
	m5, done, err := hr.step(time.Now(), m4[2:])
	if err != nil || done == nil {
		t.Fatal(err)
	}
	if _, done, err := hi.step(time.Now(), m5[2:]); err != nil || done == nil {
		t.Fatal(err)
	}
	for _, h := range []*handshake{hi, hr} {
		if _, _, err := h.step(time.Now(), m5[2:]); !errors.Is(err, errHandshakeDead) {
			t.Errorf("after the end: %v", err)
		}
		if !bytes.Equal(h.private, make([]byte, 32)) || h.hybrid.split != [64]byte{} || h.hybrid.key != nil {
			t.Error("the copy of the static key, the keys of the Split or the ML-KEM key were not cleared")
		}
	}
}

func TestRecordErrors(t *testing.T) {
	var s secret
	out, in := must(newRecord(&s, true)), must(newRecord(&s, false))
	frame := must(out.seal(nil, channelControl, []byte("one")))
	second := must(out.seal(nil, channelControl, []byte("two")))
	if _, _, err := in.open(second); err == nil {
		t.Error("a frame out of order was accepted")
	}
	if _, _, err := in.open(frame); !errors.Is(err, errRecordDead) {
		t.Errorf("after an error: %v, want errRecordDead", err)
	}
	for name, f := range map[string]func([]byte) []byte{
		"truncated": func(b []byte) []byte { return b[:len(b)-1] },
		"extended":  func(b []byte) []byte { return append(b, 0) },
		"tampered":  func(b []byte) []byte { b[len(b)-1] ^= 1; return b },
		"length":    func(b []byte) []byte { b[0] = 0x40; b[1] = 1; return b },
		"empty":     func([]byte) []byte { return nil },
		"prefix":    func(b []byte) []byte { return b[:2] },
	} {
		out, in := must(newRecord(&s, true)), must(newRecord(&s, false))
		if _, _, err := in.open(f(must(out.seal(nil, channelControl, []byte("x"))))); err == nil {
			t.Errorf("%s frame was accepted", name)
		}
	}
	// A frame of another channel than the first one.
	out, in = must(newRecord(&s, true)), must(newRecord(&s, false))
	if _, _, err := in.open(must(out.seal(nil, channelControl, nil))); err != nil {
		t.Fatal(err)
	}
	if _, _, err := in.open(must(out.seal(nil, channelMemberlist, nil))); err == nil {
		t.Error("a frame of another channel was accepted")
	}
	// The largest, and one byte more.
	out, in = must(newRecord(&s, true)), must(newRecord(&s, false))
	big := must(out.seal(nil, channelJoin, make([]byte, maxFrameData)))
	if len(big) != framePrefix+maxCiphertext {
		t.Errorf("largest frame has %d bytes", len(big))
	}
	if _, data, err := in.open(big); err != nil || len(data) != maxFrameData {
		t.Errorf("largest frame: %v", err)
	}
	if _, err := out.seal(nil, channelJoin, make([]byte, maxFrameData+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("larger frame: %v, want ErrTooLarge", err)
	}
	if _, err := out.seal(nil, channelJoin, nil); !errors.Is(err, errRecordDead) {
		t.Errorf("after that: %v, want errRecordDead", err)
	}
	// Reflected frames do not open: each direction has its own key.
	out = must(newRecord(&s, true))
	if _, _, err := out.open(must(out.seal(nil, channelJoin, nil))); err == nil {
		t.Error("a reflected frame was accepted")
	}
}
