package keys

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"testing"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

func tunnelSecret(t *testing.T, fill byte) TunnelSecret {
	t.Helper()
	s, err := TunnelSecretFromRaw32(bytes.Repeat([]byte{fill}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestTunnelSecretID(t *testing.T) {
	a := tunnelSecret(t, 9)
	// SHA-256 of "so-key-id-v1" and 32 x 09, first 8 digits, computed apart.
	if got := a.ID().String(); got != "e74c471b" {
		t.Errorf("ID = %s", got)
	}
	if b := tunnelSecret(t, 10); a.ID() == b.ID() || a.ID() == 0 {
		t.Errorf("IDs %s, %s", a.ID(), b.ID())
	}
	c := a.Clone()
	a.Wipe()
	if a.ID() != 0 || c.ID() == 0 {
		t.Errorf("after Wipe: ID %s, of the clone %s", a.ID(), c.ID())
	}
	a.ExposeESP(ids.NodeID{1}, ids.NodeID{2}, ids.MinSPI, func([]byte) { t.Error("a wiped secret gives keys") })
	if _, err := TunnelSecretFromRaw32(make([]byte, 32)); err == nil {
		t.Error("a zero secret is accepted")
	}
}

// TestESPKeysDiffer draws a million keys as nodes would, most of them from
// few secrets and few nodes, and looks for a key and salt that occur twice.
func TestESPKeysDiffer(t *testing.T) {
	const n = 1_000_000
	rnd := rand.New(rand.NewPCG(1, 2))
	seen := make(map[[ESPKeySize]byte]struct{}, n)
	salts := map[[4]byte]struct{}{}
	nodes := make([]ids.NodeID, 50)
	for i := range nodes {
		nodes[i] = ids.NodeIDOf([32]byte{byte(i), 1})
	}
	type use struct {
		secret, from, to int
		spi              ids.SPI
	}
	used := map[use]bool{}
	for s := 0; len(used) < n; s++ {
		secret := tunnelSecret(t, byte(1+s%255))
		for range n / 255 {
			u := use{s % 255, rnd.IntN(len(nodes)), rnd.IntN(len(nodes)), ids.MinSPI + ids.SPI(rnd.Uint32()>>8)}
			if u.from == u.to || used[u] {
				continue
			}
			used[u] = true
			secret.ExposeESP(nodes[u.from], nodes[u.to], u.spi, func(m []byte) {
				k := [ESPKeySize]byte(m)
				if _, twice := seen[k]; twice {
					t.Fatalf("key and salt of %+v occur twice", u)
				}
				seen[k] = struct{}{}
				salts[[4]byte(m[32:])] = struct{}{}
			})
		}
	}
	// Salts are 32 bits: some repeat by chance, about n^2 / 2^33 of them.
	if repeats := len(used) - len(salts); repeats > n/1000 {
		t.Errorf("%d of %d salts repeat", repeats, n)
	}
	t.Logf("%d keys, %d different salts", len(seen), len(salts))
}

func TestESPKeyVector(t *testing.T) {
	var got string
	tunnelSecret(t, 9).ExposeESP(ids.NodeID{1}, ids.NodeID{2}, 0x1234, func(m []byte) { got = hex.EncodeToString(m) })
	const want = "cd5154d9a2ed4aac77ad54eab444ae93f3e0de4b47dd7aaa05c377972bf51c2839dc00df" // RFC 5869, computed apart
	if got != want {
		t.Errorf("key material = %s, want %s", got, want)
	}
}
