package noisenet

import (
	"bytes"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/test/protocol"
)

var update = flag.Bool("update", false, "rewrite testdata/vectors and the vectors in PROTOCOL.md")

// readVectors splits a file into blocks of name=hex lines.
func readVectors(t *testing.T, name string) []map[string]string {
	t.Helper()
	raw, err := os.ReadFile("testdata/vectors/" + name)
	if err != nil {
		t.Fatal(err)
	}
	var out []map[string]string
	for block := range strings.SplitSeq(string(raw), "\n\n") {
		m := map[string]string{}
		for line := range strings.Lines(block) {
			if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(k, "#") {
				m[k] = v
			}
		}
		if len(m) > 0 {
			out = append(out, m)
		}
	}
	return out
}

func unhex(s string) []byte { return must(hex.DecodeString(s)) }

// TestReferenceNoise holds the independent implementation against published
// vectors, before other tests rely on it.
func TestReferenceNoise(t *testing.T) {
	for i, v := range readVectors(t, "noise.txt") {
		k := refKeys{psk: unhex(v["preshared_key"]), si: unhex(v["init_static"]), sr: unhex(v["resp_static"]),
			ei: unhex(v["gen_init_ephemeral"]), er: unhex(v["gen_resp_ephemeral"])}
		msgs, _, i2r, _ := refHandshake(unhex(v["prologue"]), k,
			[3][]byte{unhex(v["msg_0_payload"]), unhex(v["msg_1_payload"]), unhex(v["msg_2_payload"])})
		for j, m := range msgs {
			if want := v[fmt.Sprintf("msg_%d_ciphertext", j)]; hex.EncodeToString(m) != want {
				t.Errorf("vector %d (%s) message %d:\n have %x\n want %s", i, v["handshake"], j, m, want)
			}
		}
		if len(i2r) != 32 {
			t.Errorf("vector %d: split key of %d bytes", i, len(i2r))
		}
	}
}

// vectorCluster has fixed keys and fixed times, so its certificates are fixed.
func vectorCluster() (*testCluster, time.Time) {
	c := newTestCluster(1)
	c.epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	root := must(keys.RootPrivateFromRaw32(raw32(1)))
	c.delegation = keys.SignDelegation(root, keys.Delegation{Cluster: c.trust.Cluster,
		Issuer: c.issuer.Public(), MaxLifetime: 90 * 24 * time.Hour,
		NotBefore: c.epoch, NotAfter: c.epoch.Add(1000 * time.Hour)})
	return c, c.epoch.Add(time.Hour)
}

// transcript is a vector file under construction.
type transcript struct {
	b      bytes.Buffer
	values map[string][]byte
}

func (tr *transcript) add(name string, v []byte) {
	fmt.Fprintf(&tr.b, "%s=%x\n", name, v)
	if tr.values == nil {
		tr.values = map[string][]byte{}
	}
	tr.values[name] = bytes.Clone(v) // open decrypts in place
}

func (tr *transcript) check(t *testing.T, file, comment string) {
	t.Helper()
	path := "testdata/vectors/" + file
	have := comment + "\n" + tr.b.String()
	if *update {
		if err := os.WriteFile(path, []byte(have), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), have); d != "" {
		t.Errorf("%s changed; a change of the wire format needs a new version (-want +have):\n%s", path, d)
	}
}

func equal(t *testing.T, what string, have, want []byte) {
	t.Helper()
	if !bytes.Equal(have, want) {
		t.Errorf("%s:\n have %x\n want %x", what, have, want)
	}
}

// vectorRun is a member handshake with fixed keys: header and messages without
// their lengths, both results, and what the reference makes of the same inputs.
type vectorRun struct {
	msgs     [6][]byte // 0: the header
	ei, er   *established
	hash     [32]byte
	i2r, r2i []byte
	now      time.Time
	tr       transcript
}

// runVector runs one version and recomputes the Noise part of it with the
// independent implementation.
func runVector(t *testing.T, version uint8) *vectorRun {
	t.Helper()
	c, now := vectorCluster()
	a, b := c.node(10), c.node(20)
	pa, pb := a.party(), b.party()
	pa.versionMax, pa.kem, pb.kem = version, fixedKEM(), fixedKEM()
	pa.random, pa.port, pa.boot = &counterReader{next: 0x20}, 7001, 0x0a0a
	pb.random, pb.port, pb.boot = &counterReader{next: 0x40}, 7002, 0x0b0b
	v := &vectorRun{now: now}
	var err error
	v.ei, v.er, err = shakeAt(now, pa, pb, b.id, func(n int, m []byte) []byte {
		v.msgs[n] = bytes.Clone(m)
		return m
	})
	if err != nil {
		t.Fatal(err)
	}
	// The same with the reference. The certificates are the only input taken
	// from the code under test; package keys has vectors of its own.
	k := refKeys{psk: raw32(3), si: raw32(110), sr: raw32(120), ei: countUp(0x20), er: countUp(0x40)}
	prologue := append(bytes.Clone(v.msgs[0]), c.trust.Cluster[:]...)
	payA := refPayload(version, 7001, 0x0a0a, a.credential)
	payB := refPayload(version, 7002, 0x0b0b, b.credential)
	msgs, hash, i2r, r2i := refHandshake(prologue, k, [3][]byte{nil, payB, payA})
	for n, m := range msgs {
		equal(t, fmt.Sprintf("message %d", n+1), v.msgs[n+1], m)
	}
	equal(t, "initiator's hash", v.ei.hash[:], hash[:])
	equal(t, "responder's hash", v.er.hash[:], hash[:])
	v.hash, v.i2r, v.r2i = hash, i2r, r2i
	for _, f := range []struct {
		name string
		v    []byte
	}{{"root_seed", raw32(1)}, {"issuer_seed", raw32(2)}, {"access_key", raw32(3)},
		{"initiator_identity_seed", raw32(10)}, {"responder_identity_seed", raw32(20)},
		{"initiator_static", k.si}, {"responder_static", k.sr},
		{"initiator_ephemeral", k.ei}, {"responder_ephemeral", k.er},
		{"header", v.msgs[0]}, {"prologue", prologue},
		{"initiator_payload", payA}, {"responder_payload", payB},
		{"message_1", msgs[0]}, {"message_2", msgs[1]}, {"message_3", msgs[2]},
		{"handshake_hash", hash[:]}, {"split_i2r", i2r}, {"split_r2i", r2i}} {
		v.tr.add(f.name, f.v)
	}
	return v
}

// TestMemberVectors runs a member handshake with fixed keys, recomputes every
// byte of it with the independent implementation, and compares with the file.
func TestMemberVectors(t *testing.T) {
	v := runVector(t, 1)
	s := refSHA256HKDF(v.hash[:], slices.Concat(v.i2r, v.r2i), []byte("so-session-v1"))
	equal(t, "initiator's secret", v.ei.secret[:], s)
	equal(t, "responder's secret", v.er.secret[:], s)
	v.tr.add("session_secret", s)
	vectorFrames(t, &v.tr, v.ei, v.er, s)
	vectorDatagrams(t, &v.tr, v.now, v.ei, s)
	protocol.Check(t, "member handshake", v.tr.values, *update)
	v.tr.check(t, "member-v1.txt", "# Member handshake, version 1, then frames and datagrams under its secret.")
}

func countUp(from byte) []byte {
	b := make([]byte, 32)
	_, _ = (&counterReader{next: from}).Read(b)
	return b
}

func refPayload(version byte, port uint16, boot uint64, c keys.Credential) []byte {
	b := []byte{version, byte(port >> 8), byte(port), 0, 0, 0, 0, 0, 0, byte(boot >> 8), byte(boot)}
	b = append(b, byte(len(c.Cert)>>8), byte(len(c.Cert)))
	b = append(b, c.Cert...)
	b = append(b, byte(len(c.Delegation)>>8), byte(len(c.Delegation)))
	return append(b, c.Delegation...)
}

func vectorFrames(t *testing.T, tr *transcript, ei, er *established, s []byte) {
	t.Helper()
	ri, rr := must(newRecord(&ei.secret, true)), must(newRecord(&er.secret, false))
	fwd := refExpand(s, []byte("so-stream-v1\x00"))
	back := refExpand(s, []byte("so-stream-v1\x01"))
	tr.add("stream_key_i2r", fwd)
	tr.add("stream_key_r2i", back)
	for n, text := range []string{"hello", "again"} {
		frame := must(ri.seal(nil, channelControl, []byte(text)))
		equal(t, "frame", frame, refFrame(fwd, uint64(n), channelControl, text))
		tr.add(fmt.Sprintf("frame_i2r_%d", n), frame)
		if _, data, err := rr.open(frame); err != nil || string(data) != text {
			t.Errorf("open frame %d: %q, %v", n, data, err)
		}
	}
	frame := must(rr.seal(nil, channelControl, []byte("back")))
	equal(t, "frame back", frame, refFrame(back, 0, channelControl, "back"))
	tr.add("frame_r2i_0", frame)
}

func vectorDatagrams(t *testing.T, tr *transcript, now time.Time, e *established, s []byte) {
	t.Helper()
	ctx := openContext{number: 1, opener: 0x01020304, answerer: 0x0a0b0c0d}
	fwd, _, err := ctx.keys(&e.secret)
	if err != nil {
		t.Fatal(err)
	}
	key := refExpand(s, []byte("so-dgram-v1\x00\x00\x00\x00\x00\x01\x01\x02\x03\x04\x0a\x0b\x0c\x0d"))
	tr.add("datagram_key_opener_1", key)
	d := &datagramSession{peer: ids.NodeID{1}, remote: 0x0a0b0c0d, send: fwd, created: now}
	for n, text := range []string{"\x08one", "\x08two"} {
		have := must(d.seal(now, []byte(text)))
		head := []byte{1, 0, 0, 0, 0x0a, 0x0b, 0x0c, 0x0d, 0, 0, 0, 0, 0, 0, 0, byte(n)}
		equal(t, "datagram", have, append(head, refSeal(key, uint64(n), []byte(text), head)...))
		tr.add(fmt.Sprintf("datagram_%d", n), have)
	}
}

func refFrame(key []byte, n uint64, channel byte, data string) []byte {
	head := []byte{0, byte(1 + len(data) + 16)}
	return append(head, refSeal(key, n, append([]byte{channel}, data...), head)...)
}

// TestJoinVectors does the same for the join handshake.
func TestJoinVectors(t *testing.T) {
	c, now := vectorCluster()
	issuer := c.node(20)
	p := issuer.party()
	p.random, p.port, p.boot = &counterReader{next: 0x40}, 7002, 0x0b0b
	token := keys.Token{Cluster: c.trust.Cluster, Root: c.trust.Root,
		ID: keys.TokenID{1, 2, 3, 4, 5, 6, 7, 8}, Secret: must(keys.TokenSecretFromRaw32(raw32(50)))}
	j, first, err := newJoiner(token, &counterReader{next: 0x20})
	if err != nil {
		t.Fatal(err)
	}
	offered := must(parseHeader(first[:headerSize]))
	m1 := first[headerSize+2:]
	wrong := JoinKey{ID: keys.TokenID{9}, Key: must(keys.AccessKeyFromRaw32(raw32(9)))}
	m2, ei, err := answerJoin(p, offered, []JoinKey{wrong, {ID: token.ID, Key: token.Secret.JoinKey()}}, m1)
	if err != nil {
		t.Fatal(err)
	}
	ej, err := j.finish(now, m2[2:])
	if err != nil {
		t.Fatal(err)
	}
	if ei.token != token.ID || ej.cert.ID() != issuer.id {
		t.Errorf("issuer found token %v, joiner found node %v", ei.token, ej.cert.ID())
	}
	psk := exposeCopy(token.Secret.JoinKey().Expose)
	equal(t, "psk", psk, refSHA256HKDF(nil, raw32(50), []byte("so-join-psk-v1")))
	prologue := append(append([]byte{}, first[:headerSize]...), c.trust.Cluster[:]...)
	k := refKeys{psk: psk, sr: raw32(120), ei: countUp(0x20), er: countUp(0x40)}
	pay := refPayload(1, 7002, 0x0b0b, issuer.credential)
	msgs, hash, i2r, r2i := refHandshake(prologue, k, [3][]byte{nil, pay})
	equal(t, "message 1", m1, msgs[0])
	equal(t, "message 2", m2, withLength(msgs[1]))
	s := refSHA256HKDF(hash[:], append(append([]byte{}, i2r...), r2i...), []byte("so-session-v1"))
	equal(t, "joiner's secret", ej.secret[:], s)
	equal(t, "issuer's secret", ei.secret[:], s)
	tr := &transcript{}
	tr.add("token_secret", raw32(50))
	tr.add("psk", psk)
	tr.add("issuer_static", k.sr)
	tr.add("joiner_ephemeral", k.ei)
	tr.add("issuer_ephemeral", k.er)
	tr.add("header", first[:headerSize])
	tr.add("prologue", prologue)
	tr.add("issuer_payload", pay)
	tr.add("message_1", m1)
	tr.add("message_2", m2[2:])
	tr.add("handshake_hash", hash[:])
	tr.add("session_secret", s)
	protocol.Check(t, "join handshake", tr.values, *update)
	tr.check(t, "join-v1.txt", "# Join handshake, version 1.")
}
