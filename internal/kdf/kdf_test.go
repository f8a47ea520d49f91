package kdf

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"testing"
)

// TestRFC5869 is test case 1 of RFC 5869, appendix A.
func TestRFC5869(t *testing.T) {
	ikm := bytes.Repeat([]byte{0x0b}, 22)
	salt, _ := hex.DecodeString("000102030405060708090a0b0c")
	info, _ := hex.DecodeString("f0f1f2f3f4f5f6f7f8f9")
	prk := MAC(salt, ikm)
	if got := hex.EncodeToString(prk[:]); got != "077709362c2e32df0ddc3f0dc47bba6390b6c73bb50f9c3122ec844ad7c2b3e5" {
		t.Errorf("extract = %s", got)
	}
	out := make([]byte, 42)
	Expand(prk[:], info, out)
	if got := hex.EncodeToString(out); got != "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865" {
		t.Errorf("expand = %s", got)
	}
}

// TestExpandLikeTheLibrary compares all lengths up to four blocks.
func TestExpandLikeTheLibrary(t *testing.T) {
	key, info := bytes.Repeat([]byte{7}, Size), []byte("label")
	for n := 1; n <= 4*Size; n++ {
		want, err := hkdf.Expand(sha256.New, key, string(info), n)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, n)
		if Expand(key, info, got); !bytes.Equal(got, want) {
			t.Errorf("%d bytes: %x, want %x", n, got, want)
		}
	}
}
