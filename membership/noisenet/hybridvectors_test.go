package noisenet

import (
	"bytes"
	"crypto/mlkem"
	"crypto/mlkem/mlkemtest"
	"crypto/sha256"
	"crypto/sha3"
	"slices"
	"testing"

	"github.com/secure-overlay/secure-overlay/test/protocol"
)

// Inputs of ML-KEM in the vectors: the seed d || z of the key and the message m
// of the ciphertext (FIPS 203, algorithms 16 and 17).
func kemSeed() []byte    { return append(countUp(0x60), countUp(0x80)...) }
func kemMessage() []byte { return countUp(0xa0) }

// fixedKEM is ML-KEM without randomness.
func fixedKEM() kem {
	return kem{
		generate: func() (*mlkem.DecapsulationKey768, error) { return mlkem.NewDecapsulationKey768(kemSeed()) },
		encapsulate: func(ek *mlkem.EncapsulationKey768) (shared, ciphertext []byte) {
			shared, ciphertext, err := mlkemtest.Encapsulate768(ek, kemMessage())
			if err != nil {
				panic(err)
			}
			return shared, ciphertext
		},
	}
}

// TestHybridVectors is TestMemberVectors for version 2. Keys and ciphertexts of
// ML-KEM are the standard library's; its secret is recomputed by the formula of
// FIPS 203 (K, r) = G(m || H(ek)), which needs no lattice.
func TestHybridVectors(t *testing.T) {
	v := runVector(t, 2)
	dk := must(mlkem.NewDecapsulationKey768(kemSeed()))
	ek := dk.EncapsulationKey().Bytes()
	_, ct, err := mlkemtest.Encapsulate768(dk.EncapsulationKey(), kemMessage())
	if err != nil {
		t.Fatal(err)
	}
	h := sha3.Sum256(ek)
	g := sha3.Sum512(append(kemMessage(), h[:]...))
	shared := g[:32]

	split := slices.Concat(v.i2r, v.r2i)
	fwd := refSHA256HKDF(v.hash[:], split, []byte("so-hybrid-v2\x00"))
	back := refSHA256HKDF(v.hash[:], split, []byte("so-hybrid-v2\x01"))
	equal(t, "message 4", v.msgs[4], refSeal(fwd, 0, ek, []byte{1200 >> 8, 1200 & 255}))
	equal(t, "message 5", v.msgs[5], refSeal(back, 0, ct, []byte{1104 >> 8, 1104 & 255}))
	transcriptHash := sha256.Sum256(append(bytes.Clone(ek), ct...))
	s := refSHA256HKDF(v.hash[:], append(split, shared...), append([]byte("so-session-v2"), transcriptHash[:]...))
	equal(t, "initiator's secret", v.ei.secret[:], s)
	equal(t, "responder's secret", v.er.secret[:], s)

	for _, f := range []struct {
		name string
		v    []byte
	}{{"kem_seed", kemSeed()}, {"kem_message", kemMessage()},
		{"encapsulation_key", ek}, {"ciphertext", ct}, {"kem_secret", shared},
		{"hybrid_key_i2r", fwd}, {"hybrid_key_r2i", back},
		{"message_4", v.msgs[4]}, {"message_5", v.msgs[5]},
		{"transcript_hash", transcriptHash[:]}, {"session_secret", s}} {
		v.tr.add(f.name, f.v)
	}
	for name, long := range map[string][]byte{"encapsulation_key": ek, "ciphertext": ct,
		"message_4": v.msgs[4], "message_5": v.msgs[5]} {
		sum := sha256.Sum256(long)
		v.tr.values[name+"_sha256"] = sum[:] // the document has no room for all of it
	}
	vectorFrames(t, &v.tr, v.ei, v.er, s)
	vectorDatagrams(t, &v.tr, v.now, v.ei, s)
	vectorTunnel(t, &v.tr, v.ei, s)
	protocol.Check(t, "hybrid handshake", v.tr.values, *update)
	v.tr.check(t, "member-v2.txt", "# Member handshake, version 2, then frames, datagrams and a tunnel secret under its secret.")
}

func vectorTunnel(t *testing.T, tr *transcript, e *established, s []byte) {
	t.Helper()
	req, resp := []byte("request"), []byte("response")
	a, b := sha256.Sum256(req), sha256.Sum256(resp)
	want := refExpand(s, slices.Concat([]byte("so-tunnel-v1"), a[:], b[:]))
	have := must(tunnelSecret(&e.secret, req, resp))
	have.Expose(func(raw []byte) { equal(t, "tunnel secret", raw, want) })
	tr.add("agree_request", req)
	tr.add("agree_response", resp)
	tr.add("tunnel_secret", want)
}
