package noisenet

import (
	"bytes"
	"crypto/mlkem"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// hybridPair returns both sides of a hybrid step after message 3.
func hybridPair() (i, r *hybrid) {
	side := func() *hybrid {
		y := &hybrid{peer: &established{version: versionHybrid, hash: [32]byte{7}}}
		copy(y.split[:], append(raw32(1), raw32(2)...))
		return y
	}
	return side(), side()
}

func TestHybridStep(t *testing.T) {
	seen := map[secret]bool{}
	for range 3 {
		i, r := hybridPair()
		m4 := must(i.offer(newKEM()))
		m5, er, err := r.answer(newKEM(), m4[2:])
		if err != nil {
			t.Fatal(err)
		}
		if len(m4) != 2+hybridOffer || len(m5) != 2+hybridAnswer {
			t.Errorf("messages of %d and %d bytes", len(m4), len(m5))
		}
		ei := must(i.finish(m5[2:]))
		if ei.secret != er.secret || seen[ei.secret] {
			t.Error("the secret differs at the two ends, or repeats")
		}
		seen[ei.secret] = true
		i.forget()
		if i.key != nil || i.split != [64]byte{} {
			t.Error("keys are left")
		}
	}
}

// TestHybridTampering changes each byte of both messages, and their lengths.
func TestHybridTampering(t *testing.T) {
	i, r := hybridPair()
	m4 := must(i.offer(newKEM()))[2:]
	m5, _, err := r.answer(newKEM(), m4)
	if err != nil {
		t.Fatal(err)
	}
	m5 = m5[2:]
	try := func(what string, at int, msg []byte, f func([]byte) error) {
		t.Helper()
		if err := f(msg); !errors.Is(err, ErrHandshake) {
			t.Fatalf("%s changed at %d: %v, want ErrHandshake", what, at, err)
		}
	}
	answer := func(m []byte) error { _, _, err := r.answer(newKEM(), m); return err }
	finish := func(m []byte) error { _, err := i.finish(m); return err }
	for what, c := range map[string]struct {
		msg  []byte
		take func([]byte) error
	}{"message 4": {m4, answer}, "message 5": {m5, finish}} {
		for at := range c.msg {
			bad := bytes.Clone(c.msg)
			bad[at] ^= 1 << (at % 8)
			try(what, at, bad, c.take)
		}
		for _, n := range []int{0, 1, tagSize, len(c.msg) - 1} {
			try(what, n, c.msg[:n], c.take)
		}
		try(what, len(c.msg), append(bytes.Clone(c.msg), 0), c.take)
	}
	// One for the other: each direction has a key of its own.
	try("reflected message", 0, m4, func(m []byte) error { _, err := i.open(dirBack, m, len(m)-tagSize); return err })
	if err := finish(m5); err != nil {
		t.Errorf("the right message 5: %v", err)
	}
}

// TestHybridMalformed: what an enrolled peer may seal that is no ML-KEM.
func TestHybridMalformed(t *testing.T) {
	i, r := hybridPair()
	good := must(mlkem.GenerateKey768()).EncapsulationKey().Bytes()
	tooBig := bytes.Clone(good)
	tooBig[0], tooBig[1] = 0xff, tooBig[1]|0x0f // first coefficient 4,095, modulus 3,329
	for name, key := range map[string][]byte{
		"all ones": bytes.Repeat([]byte{0xff}, len(good)), "one coefficient out of range": tooBig,
		"short": good[1:], "long": append(bytes.Clone(good), 0), "empty": nil, "a ciphertext": make([]byte, mlkem.CiphertextSize768),
	} {
		m4 := must(i.seal(dirForward, key))
		if _, e, err := r.answer(newKEM(), m4[2:]); !errors.Is(err, ErrHandshake) || e != nil {
			t.Errorf("encapsulation key, %s: %v, want ErrHandshake", name, err)
		}
	}
	m4 := must(i.offer(newKEM()))
	_, er, err := r.answer(newKEM(), m4[2:])
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, mlkem.CiphertextSize768 - 1, mlkem.CiphertextSize768 + 1} {
		m5 := must(r.seal(dirBack, make([]byte, n)))
		if _, err := i.finish(m5[2:]); !errors.Is(err, ErrHandshake) {
			t.Errorf("ciphertext of %d bytes: %v, want ErrHandshake", n, err)
		}
	}
	// ML-KEM takes any ciphertext of the right length (implicit rejection): the
	// two ends then have different secrets, and the first frame shows it.
	m5 := must(r.seal(dirBack, make([]byte, mlkem.CiphertextSize768)))
	ei, err := i.finish(m5[2:])
	if err != nil {
		t.Fatal(err)
	}
	out, in := must(newRecord(&ei.secret, true)), must(newRecord(&er.secret, false))
	if _, _, err := in.open(must(out.seal(nil, channelControl, nil))); err == nil {
		t.Error("a frame under the secret of another ciphertext was accepted")
	}
}

// TestHybridBindsTranscript: the same ML-KEM secret with another key or
// ciphertext is another session.
func TestHybridBindsTranscript(t *testing.T) {
	_, y := hybridPair()
	secretOf := func(offer, ciphertext, shared byte) secret {
		return y.establish(bytes.Repeat([]byte{offer}, mlkem.EncapsulationKeySize768),
			bytes.Repeat([]byte{ciphertext}, mlkem.CiphertextSize768), raw32(shared)).secret
	}
	seen := map[secret]bool{}
	for _, c := range [][3]byte{{1, 2, 3}, {9, 2, 3}, {1, 9, 3}, {1, 2, 9}} {
		seen[secretOf(c[0], c[1], c[2])] = true
	}
	y.split[0] ^= 1
	seen[secretOf(1, 2, 3)] = true
	y.split[0] ^= 1
	y.peer.hash[0] ^= 1
	seen[secretOf(1, 2, 3)] = true
	if len(seen) != 6 {
		t.Errorf("6 different inputs gave %d secrets", len(seen))
	}
}

// TestHybridDowngrade: nobody on the way can make two nodes do without the
// hybrid step.
func TestHybridDowngrade(t *testing.T) {
	c := newTestCluster(1)
	a, b := c.node(10).party(), c.node(20).party()
	for name, strip := range map[string]func([]byte){
		"highest version cut": func(h []byte) { h[3] = 1 },
		"lowest version cut":  func(h []byte) { h[2] = 2 },
	} {
		ea, eb, err := shake(a, b, ids.NodeID{}, func(n int, m []byte) []byte {
			if n == 0 {
				m = bytes.Clone(m)
				strip(m)
			}
			return m
		})
		if !errors.Is(err, ErrHandshake) || ea != nil || eb != nil {
			t.Errorf("%s: %v, want ErrHandshake", name, err)
		}
	}
	// A responder that claims a version above the one of the initiator, or an
	// initiator that confirms another one, is no older build.
	old := c.node(10).party()
	old.versionMax = 1
	liar := c.node(20).party()
	hi, first, err := newInitiator(old, ids.NodeID{})
	if err != nil {
		t.Fatal(err)
	}
	hr := must(newResponder(liar, must(parseHeader(first[:headerSize]))))
	hr.version = 2
	m2, _, err := hr.step(time.Now(), first[headerSize+2:])
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := hi.step(time.Now(), m2[2:]); !errors.Is(err, ErrVersion) {
		t.Errorf("version above the range: %v, want ErrVersion", err)
	}
}

// TestRequireHybrid: as initiator before message 3, as responder before
// message 2.
func TestRequireHybrid(t *testing.T) {
	c := newTestCluster(1)
	strict, old := c.node(10).party(), c.node(20).party()
	strict.hybridOnly, old.versionMax = true, 1
	sent := 0
	_, _, err := shake(strict, old, ids.NodeID{}, func(n int, m []byte) []byte { sent = n; return m })
	if !errors.Is(err, ErrNotHybrid) || sent != 2 || !strings.Contains(err.Error(), "crypto.require_pq") ||
		!strings.Contains(err.Error(), old.node.String()) {
		t.Errorf("as initiator: %v after message %d, want ErrNotHybrid after message 2", err, sent)
	}
	_, _, err = shake(old, strict, ids.NodeID{}, func(n int, m []byte) []byte { sent = n; return m })
	if !errors.Is(err, ErrNotHybrid) || sent != 0 || !strings.Contains(err.Error(), "crypto.require_pq") {
		t.Errorf("as responder: %v after message %d, want ErrNotHybrid after the header", err, sent)
	}
	modern := c.node(30).party()
	for _, p := range [][2]*party{{strict, modern}, {modern, strict}, {strict, func() *party { p := *modern; p.hybridOnly = true; return &p }()}} {
		ea, eb, err := shake(p[0], p[1], ids.NodeID{}, nil)
		if err != nil || !ea.hybrid() || !eb.hybrid() {
			t.Errorf("with a node that has it: %v", err)
		}
	}
}

// TestHandshakeInterop: every combination of versions 1 and 2 uses the highest
// that both know, and both ends know which it is.
func TestHandshakeInterop(t *testing.T) {
	c := newTestCluster(1)
	for _, v := range [][3]uint8{{1, 1, 1}, {1, 2, 1}, {2, 1, 1}, {2, 2, 2}} {
		a, b := c.node(10).party(), c.node(20).party()
		a.versionMax, b.versionMax = v[0], v[1]
		ea, eb, err := shake(a, b, b.node, nil)
		if err != nil || ea.version != v[2] || eb.version != v[2] || ea.secret != eb.secret {
			t.Errorf("versions %d and %d: %v", v[0], v[1], err)
		}
	}
}

// TestTransportInterop: the same with everything that a transport does.
func TestTransportInterop(t *testing.T) {
	for _, v := range [][2]uint8{{1, 2}, {2, 1}, {2, 2}} {
		c := newTestCluster(1)
		taken := &agreer{}
		n := 0
		edit := func(cfg *Config) {
			cfg.versionMax, cfg.Handler, cfg.Agree = v[n], echo, taken.handle
			n++
		}
		a, b := start(t, c.node(10), edit), start(t, c.node(20), edit)
		a.dir.set(b.node.id, b.addr())
		b.dir.set(a.node.id, a.addr())
		a.send(t, b.node, "packet")
		b.expectPacket(t, a.node, "packet")
		if _, err := b.Call(testContext(t), a.node.id, []byte("x")); err != nil {
			t.Errorf("versions %v: %v", v, err)
		}
		got, err := a.Agree(testContext(t), b.node.id, []byte("x"))
		if err != nil {
			t.Fatalf("versions %v: %v", v, err)
		}
		want := v == [2]uint8{2, 2}
		theirs, from := taken.last(t, 1)
		pa, _ := a.Peer(b.node.id)
		pb, _ := b.Peer(a.node.id)
		if !theirs.Equal(got.Secret) || got.Hybrid != want || from.Hybrid != want || pa.Hybrid != want || pb.Hybrid != want {
			t.Errorf("versions %v: hybrid %v %v %v %v, want %v", v, got.Hybrid, from.Hybrid, pa.Hybrid, pb.Hybrid, want)
		}
		a.stop()
		b.stop()
	}
}

func TestTransportRequireHybrid(t *testing.T) {
	c := newTestCluster(1)
	strict := start(t, c.node(10), func(cfg *Config) { cfg.RequireHybrid = true })
	old := start(t, c.node(20), func(cfg *Config) { cfg.versionMax = 1 })
	strict.dir.set(old.node.id, old.addr())
	ctx := testContext(t)
	for what, try := range map[string]func() error{
		"contact": func() error { _, err := strict.Contact(ctx, old.addr()); return err },
		"call":    func() error { _, err := strict.Call(ctx, old.node.id, nil); return err },
		"agree":   func() error { _, err := strict.Agree(ctx, old.node.id, nil); return err },
	} {
		if err := try(); !errors.Is(err, ErrNotHybrid) || !strings.Contains(err.Error(), "crypto.require_pq") {
			t.Errorf("%s: %v, want ErrNotHybrid", what, err)
		}
	}
	if _, err := old.Contact(ctx, strict.addr()); !errors.Is(err, ErrHandshake) {
		t.Errorf("contact by the older node: %v, want ErrHandshake", err)
	}
	eventually(t, "the refusal is logged with the setting", func() bool { return strict.log.count("crypto.require_pq") == 1 })
	if _, ok := strict.Peer(old.node.id); ok {
		t.Error("the older node became a peer")
	}
	modern := start(t, c.node(30), nil)
	if p, err := modern.Contact(ctx, strict.addr()); err != nil || !p.Hybrid {
		t.Errorf("contact by a node that has it: hybrid %v, %v", p.Hybrid, err)
	}
}

// TestJoinDoesNotNeedHybrid: a join has version 1 only, whatever its nodes ask
// of members.
func TestJoinDoesNotNeedHybrid(t *testing.T) {
	c := newTestCluster(1)
	f := newFakeAdmission(c)
	issuer := start(t, c.issuerNode(10), func(cfg *Config) { cfg.Admission, cfg.RequireHybrid = f, true })
	n := c.node(20)
	a, err := Join(testContext(t), joinOptions(issuer.addr(), f.token(50), n))
	if err != nil {
		t.Fatal(err)
	}
	n.credential = a.Credential
	m := start(t, n, func(cfg *Config) { cfg.RequireHybrid = true })
	if p, err := m.Contact(testContext(t), issuer.addr()); err != nil || !p.Hybrid {
		t.Errorf("as a member: hybrid %v, %v", p.Hybrid, err)
	}
}

// TestHybridOfferMissing: a member that stops after message 3 is not kept, and
// one that announces another length is closed at once.
func TestHybridOfferMissing(t *testing.T) {
	c := newTestCluster(1)
	for name, tc := range map[string]struct {
		after  []byte
		atOnce bool
	}{
		"nothing":            {nil, false},
		"half of it":         {append([]byte{hybridOffer >> 8, hybridOffer & 255}, make([]byte, 600)...), false},
		"too long":           {[]byte{hybridOffer >> 8, hybridOffer&255 + 1}, true},
		"too short":          {[]byte{hybridOffer >> 8, hybridOffer&255 - 1}, true},
		"not sealed":         {append([]byte{hybridOffer >> 8, hybridOffer & 255}, make([]byte, hybridOffer)...), true},
		"frame of version 1": {append([]byte{0, 22}, make([]byte, 22)...), true},
	} {
		t.Run(name, func(t *testing.T) {
			limit := 30 * time.Second
			if !tc.atOnce {
				limit = 300 * time.Millisecond
			}
			n := start(t, c.node(10), func(cfg *Config) { cfg.limits.handshake = limit })
			conn := rawDial(t, n.addr())
			h, first, err := newInitiator(c.node(20).party(), n.node.id)
			if err != nil {
				t.Fatal(err)
			}
			_, _ = conn.Write(first)
			out, _, err := h.step(time.Now(), must(readHandshake(conn, helloSize, maxHandshake)))
			if err != nil {
				t.Fatal(err)
			}
			m3, _ := cutMessage(out)
			_, _ = conn.Write(append(withLength(m3), tc.after...))
			if b := expectClosed(t, conn, 10*time.Second); len(b) != 0 {
				t.Errorf("received %d bytes", len(b))
			}
			noStreams(t, n)
			if _, ok := n.Peer(c.node(20).id); ok {
				t.Error("it became a peer")
			}
		})
	}
}

// TestReadsBeforeAuthentication: what a responder takes from a stranger, at
// most, is less than 2 KiB. The hybrid step comes after message 3 and adds
// nothing to it.
func TestReadsBeforeAuthentication(t *testing.T) {
	c := newTestCluster(1)
	r := must(newResponder(c.node(10).party(), header{min: 1, max: 2, kind: streamMember, keyID: must(accessKeyID(c.access))}))
	total := headerSize
	for r.messages < 3 {
		_, most := r.want()
		total += 2 + most
		r.messages = map[int]int{0: 2, 2: 3}[r.messages] // as after a good message
	}
	if total != 1962 || total >= 2048 {
		t.Errorf("%d bytes", total)
	}
	if least, most := r.want(); least != 1200 || most != 1200 {
		t.Errorf("message 4 of %d..%d bytes", least, most)
	}
}

// FuzzHybrid feeds both sides with bytes of a stranger, and with what an
// enrolled peer has sealed.
func FuzzHybrid(f *testing.F) {
	i, r := hybridPair()
	m4 := must(i.offer(fixedKEM()))
	m5, _, err := r.answer(fixedKEM(), m4[2:])
	if err != nil {
		f.Fatal(err)
	}
	f.Add(m4[2:])
	f.Add(m5[2:])
	f.Add(must(mlkem.NewDecapsulationKey768(kemSeed())).EncapsulationKey().Bytes())
	f.Add(bytes.Repeat([]byte{0xff}, mlkem.EncapsulationKeySize768))
	f.Add(make([]byte, mlkem.CiphertextSize768))
	f.Fuzz(func(t *testing.T, b []byte) {
		i, r := hybridPair()
		offer := must(i.offer(fixedKEM()))
		if _, e, err := r.answer(fixedKEM(), b); err == nil && !bytes.Equal(b, offer[2:]) || (err == nil) != (e != nil) {
			t.Error("the responder took bytes that nobody sealed")
		}
		if len(b) > maxHandshake {
			return
		}
		sealed := must(i.seal(dirForward, b))
		m5, e, err := r.answer(newKEM(), sealed[2:])
		if err == nil && (len(b) != mlkem.EncapsulationKeySize768 || len(m5) != 2+hybridAnswer || e == nil) {
			t.Errorf("the responder took a key of %d bytes", len(b))
		}
		if err == nil && int(binary.BigEndian.Uint16(m5)) != hybridAnswer {
			t.Error("message 5 has another length than it says")
		}
		sealed = must(r.seal(dirBack, b))
		if _, err := i.finish(sealed[2:]); (err == nil) != (len(b) == mlkem.CiphertextSize768) {
			t.Errorf("ciphertext of %d bytes: %v", len(b), err)
		}
	})
}
