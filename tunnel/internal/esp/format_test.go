package esp

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

const labSPI ids.SPI = 0x1234_5678

func labMaterial() []byte {
	b := make([]byte, keys.ESPKeySize)
	for i := range b {
		b[i] = byte(i*7 + 1)
	}
	return b
}

func pair(t testing.TB) (*Sealer, *Opener) {
	t.Helper()
	s, err := NewSealer(labSPI, labMaterial())
	if err != nil {
		t.Fatal(err)
	}
	o, err := NewOpener(labSPI, labMaterial())
	if err != nil {
		t.Fatal(err)
	}
	return s, o
}

// seal returns the packet of an inner packet.
func seal(t testing.TB, s *Sealer, inner []byte) []byte {
	t.Helper()
	b := append(make([]byte, HeaderLen), inner...)
	b = append(b, make([]byte, MaxOverhead)...)
	n, err := s.Seal(b, len(inner))
	if err != nil {
		t.Fatal(err)
	}
	return b[:n]
}

// TestFormat takes a packet to pieces by hand, as RFC 4303 and RFC 4106 have it.
func TestFormat(t *testing.T) {
	s, _ := pair(t)
	s.seq = 0x7_ffff_fffe
	for n := range 70 {
		inner := bytes.Repeat([]byte{byte(n)}, n)
		p := seal(t, s, inner)
		if len(p)%4 != 0 || len(p) > n+MaxOverhead {
			t.Fatalf("%d bytes became %d", n, len(p))
		}
		if SPI(p) != labSPI || binary.BigEndian.Uint32(p[4:]) != uint32(s.seq) {
			t.Fatalf("header % x", p[:8])
		}
		block, err := aes.NewCipher(labMaterial()[:32])
		if err != nil {
			t.Fatal(err)
		}
		aead, err := cipher.NewGCM(block)
		if err != nil {
			t.Fatal(err)
		}
		nonce := slices.Concat(labMaterial()[32:], p[8:16])
		aad := binary.BigEndian.AppendUint64(slices.Clone(p[:4]), s.seq)
		plain, err := aead.Open(nil, nonce, p[16:], aad)
		if err != nil {
			t.Fatal(err)
		}
		padding := int(plain[len(plain)-2])
		want := slices.Concat(inner, []byte{1, 2, 3}[:padding], []byte{byte(padding), 41})
		if padding > 3 || !bytes.Equal(plain, want) {
			t.Fatalf("plain % x, want % x", plain, want)
		}
	}
}

// TestOpensWhatIsSealed, in any order within the window, and each packet once.
func TestOpensWhatIsSealed(t *testing.T) {
	s, o := pair(t)
	const start = 1<<32 - 5_000 // low halves wrap on the way
	s.seq, o.window.top = start, start
	r := rand.New(rand.NewPCG(3, 4))
	for range 40 {
		packets := make([][]byte, 512)
		for i := range packets {
			packets[i] = seal(t, s, binary.BigEndian.AppendUint64(nil, s.seq+1))
		}
		r.Shuffle(len(packets), func(i, j int) { packets[i], packets[j] = packets[j], packets[i] })
		for _, p := range packets {
			copied := slices.Clone(p)
			inner, err := o.Open(p)
			if err != nil || uint32(binary.BigEndian.Uint64(inner)) != binary.BigEndian.Uint32(p[4:]) {
				t.Fatalf("inner % x: %v", inner, err)
			}
			if _, err := o.Open(copied); !errors.Is(err, ErrReplay) {
				t.Fatalf("a second time: %v", err)
			}
		}
	}
	if o.window.top < 1<<32 {
		t.Fatal("low halves did not wrap")
	}
}

// TestEveryByteCounts: a packet with any bit changed is refused, and moves nothing.
func TestEveryByteCounts(t *testing.T) {
	s, o := pair(t)
	p := seal(t, s, []byte("some inner packet"))
	for i := range p[4:] { // the SPI chooses the association
		for bit := range 8 {
			bad := slices.Clone(p)
			bad[4+i] ^= 1 << bit
			if _, err := o.Open(bad); err == nil {
				t.Fatalf("accepted with bit %d of byte %d changed", bit, 4+i)
			}
		}
	}
	for n := range p {
		if _, err := o.Open(slices.Clone(p[:n])); err == nil {
			t.Fatalf("%d of %d bytes were accepted", n, len(p))
		}
	}
	if o.window != (window{}) {
		t.Errorf("forged packets moved the window to %d", o.window.top)
	}
	if _, err := o.Open(p); err != nil {
		t.Errorf("the true packet: %v", err)
	}
}

// TestTrailer: what has the right tag and a wrong end is refused, and counts as taken.
func TestTrailer(t *testing.T) {
	s, o := pair(t)
	for _, end := range [][]byte{{9, 41}, {255, 41}, {0, 4}, {0, 59}} {
		s.seq++
		plain := append([]byte{1, 2, 3, 4, 5, 6}, end...)
		p := binary.BigEndian.AppendUint32(nil, uint32(labSPI))
		p = binary.BigEndian.AppendUint32(p, uint32(s.seq))
		p = binary.BigEndian.AppendUint64(p, s.seq)
		nonce := slices.Concat(labMaterial()[32:], p[8:16])
		p = s.aead.Seal(p, nonce, plain, binary.BigEndian.AppendUint64(slices.Clone(p[:4]), s.seq))
		if _, err := o.Open(slices.Clone(p)); !errors.Is(err, ErrTrailer) {
			t.Errorf("end % x: %v", end, err)
		}
		if _, err := o.Open(p); !errors.Is(err, ErrReplay) {
			t.Errorf("end % x, again: %v", end, err)
		}
	}
}

func TestExhausted(t *testing.T) {
	s, _ := pair(t)
	s.seq = 1<<64 - 2
	b := make([]byte, 100)
	if _, err := s.Seal(b, 10); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Seal(b, 10); !errors.Is(err, ErrExhausted) {
		t.Errorf("beyond the last number: %v", err)
	}
}

func TestMaterialLength(t *testing.T) {
	for _, n := range []int{0, 32, 35, 37} {
		if _, err := NewSealer(labSPI, make([]byte, n)); err == nil {
			t.Errorf("%d bytes of material were taken", n)
		}
	}
}

// TestNoAllocations: the garbage collector has nothing to do with packets.
func TestNoAllocations(t *testing.T) {
	s, o := pair(t)
	b := make([]byte, 1500+MaxOverhead)
	n := testing.AllocsPerRun(100, func() {
		size, err := s.Seal(b, 1400)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := o.Open(b[:size]); err != nil {
			t.Fatal(err)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations per packet", n)
	}
}

// FuzzOpen: nobody without the key makes an Opener take anything, or panic.
func FuzzOpen(f *testing.F) {
	s, _ := pair(f)
	f.Add([]byte(nil))
	f.Add(seal(f, s, nil)[:30])
	f.Add(make([]byte, 60))
	f.Fuzz(func(t *testing.T, p []byte) {
		_, o := pair(t)
		if inner, err := o.Open(p); err == nil {
			t.Fatalf("took % x", inner)
		}
	})
}

func BenchmarkSeal(b *testing.B) {
	s, _ := pair(b)
	buf := make([]byte, 1400+MaxOverhead)
	b.SetBytes(1400)
	for b.Loop() {
		_, _ = s.Seal(buf, 1400)
	}
}

func BenchmarkOpen(b *testing.B) {
	s, o := pair(b)
	buf := make([]byte, 1400+MaxOverhead)
	n, _ := s.Seal(buf, 1400)
	work := make([]byte, n)
	b.SetBytes(1400)
	for b.Loop() {
		copy(work, buf)
		o.window = window{}
		_, _ = o.Open(work[:n])
	}
}
