package noisenet

import (
	"crypto/ecdh"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"hash"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
)

// refNoise is the symmetric state of Noise, written from the specification
// (revision 34, section 5.2) and without flynn/noise, so that tests compare two
// implementations.
type refNoise struct {
	ck, h [32]byte
	k     []byte
	n     uint64
}

func newBlake() hash.Hash {
	h, err := blake2s.New256(nil)
	if err != nil {
		panic(err)
	}
	return h
}

func refHMAC(newHash func() hash.Hash, key []byte, parts ...[]byte) []byte {
	m := hmac.New(newHash, key)
	for _, p := range parts {
		m.Write(p)
	}
	return m.Sum(nil)
}

// refHKDF is Noise's HKDF with outputs 1..n.
func refHKDF(ck, ikm []byte, n byte) [][]byte {
	temp := refHMAC(newBlake, ck, ikm)
	var out [][]byte
	var last []byte
	for i := byte(1); i <= n; i++ {
		last = refHMAC(newBlake, temp, last, []byte{i})
		out = append(out, last)
	}
	return out
}

// refSHA256HKDF is RFC 5869 with one block of output.
func refSHA256HKDF(salt, ikm, info []byte) []byte {
	return refExpand(refHMAC(sha256.New, salt, ikm), info)
}

func refExpand(prk, info []byte) []byte {
	return refHMAC(sha256.New, prk, info, []byte{1})
}

func newRefNoise(name string, prologue []byte) *refNoise {
	r := &refNoise{h: blake2s.Sum256([]byte(name))}
	r.ck = r.h
	r.mixHash(prologue)
	return r
}

func (r *refNoise) mixHash(b []byte) { r.h = blake2s.Sum256(append(r.h[:], b...)) }

func (r *refNoise) mixKey(ikm []byte) {
	o := refHKDF(r.ck[:], ikm, 2)
	r.ck, r.k, r.n = [32]byte(o[0]), o[1], 0
}

func (r *refNoise) mixKeyAndHash(ikm []byte) {
	o := refHKDF(r.ck[:], ikm, 3)
	r.ck = [32]byte(o[0])
	r.mixHash(o[1])
	r.k, r.n = o[2], 0
}

func (r *refNoise) encryptAndHash(plain []byte) []byte {
	var nonce [12]byte
	binary.LittleEndian.PutUint64(nonce[4:], r.n)
	r.n++
	a, err := chacha20poly1305.New(r.k)
	if err != nil {
		panic(err)
	}
	c := a.Seal(nil, nonce[:], plain, r.h[:])
	r.mixHash(c)
	return c
}

// ephemeral is the token e in a pattern with a psk.
func (r *refNoise) ephemeral(pub []byte) []byte {
	r.mixHash(pub)
	r.mixKey(pub)
	return pub
}

func (r *refNoise) split() (a, b []byte) {
	o := refHKDF(r.ck[:], nil, 2)
	return o[0], o[1]
}

func refPublic(private []byte) []byte {
	return must(ecdh.X25519().NewPrivateKey(private)).PublicKey().Bytes()
}

func refDH(private, public []byte) []byte {
	k := must(ecdh.X25519().NewPrivateKey(private))
	return must(k.ECDH(must(ecdh.X25519().NewPublicKey(public))))
}

// refKeys are the private inputs of a handshake.
type refKeys struct {
	psk, si, sr, ei, er []byte // si empty: pattern NX
}

// refHandshake returns the three messages (two for NX), the handshake hash and
// both keys of Split.
func refHandshake(prologue []byte, k refKeys, payloads [3][]byte) (msgs [][]byte, h [32]byte, i2r, r2i []byte) {
	pattern := "XX"
	if len(k.si) == 0 {
		pattern = "NX"
	}
	r := newRefNoise("Noise_"+pattern+"psk0_25519_ChaChaPoly_BLAKE2s", prologue)
	// -> psk, e
	r.mixKeyAndHash(k.psk)
	m1 := r.ephemeral(refPublic(k.ei))
	m1 = append(m1, r.encryptAndHash(payloads[0])...)
	// <- e, ee, s, es
	m2 := r.ephemeral(refPublic(k.er))
	r.mixKey(refDH(k.er, refPublic(k.ei)))
	m2 = append(m2, r.encryptAndHash(refPublic(k.sr))...)
	r.mixKey(refDH(k.sr, refPublic(k.ei)))
	m2 = append(m2, r.encryptAndHash(payloads[1])...)
	msgs = [][]byte{m1, m2}
	if len(k.si) != 0 {
		// -> s, se
		m3 := r.encryptAndHash(refPublic(k.si))
		r.mixKey(refDH(k.si, refPublic(k.er)))
		msgs = append(msgs, append(m3, r.encryptAndHash(payloads[2])...))
	}
	i2r, r2i = r.split()
	return msgs, r.h, i2r, r2i
}

// refSeal is ChaCha20-Poly1305 with this protocol's big-endian nonce.
func refSeal(key []byte, n uint64, plain, ad []byte) []byte {
	var nonce [12]byte
	binary.BigEndian.PutUint64(nonce[4:], n)
	return must(chacha20poly1305.New(key)).Seal(nil, nonce[:], plain, ad)
}
