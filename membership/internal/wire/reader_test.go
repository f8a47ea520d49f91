package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"
)

var errBad = errors.New("thing is malformed")

func TestReader(t *testing.T) {
	r := NewReader([]byte{1, 0, 2, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 2, 'h', 'i', 5, 6, 7}, errBad)
	if a, b, c, d := r.U8(), r.U16(), r.U32(), r.U64(); a != 1 || b != 2 || c != 3 || d != 4 {
		t.Errorf("numbers are %d, %d, %d, %d", a, b, c, d)
	}
	if got := r.Block("text", 2); string(got) != "hi" || cap(got) != 2 {
		t.Errorf("block is %q with room for %d", got, cap(got))
	}
	var two [2]byte
	if r.Fill(two[:]); two != [2]byte{5, 6} {
		t.Errorf("filled with %v", two)
	}
	if err := r.Err(); err != nil || !bytes.Equal(r.Rest(), []byte{7}) {
		t.Errorf("%v, rest %v", err, r.Rest())
	}
	if r.U8() != 7 || r.Done() != nil {
		t.Errorf("at the end: %v", r.Err())
	}
}

// TestFailures: each failure says what is wrong, and is the one that stays.
func TestFailures(t *testing.T) {
	for want, read := range map[string]func(r *Reader){
		"ends 1 bytes early":                    func(r *Reader) { r.Take(5) },
		"ends 4 bytes early":                    func(r *Reader) { r.U64() },
		"258 bytes of text, at most 9":          func(r *Reader) { r.Block("text", 9) },
		"258 bytes of text do not fit the rest": func(r *Reader) { r.Block("text", 999) },
		"3 things, at most 2":                   func(r *Reader) { r.Count("things", 3, 2, 0) },
		"3 things do not fit the rest of 4":     func(r *Reader) { r.Count("things", 3, 3, 2) },
		"4 bytes too many":                      func(r *Reader) { _ = r.Done() },
		"thing 7 has no name":                   func(r *Reader) { r.Fail("thing %d has no name", 7) },
	} {
		r := NewReader([]byte{1, 2, 3, 4}, errBad)
		read(r)
		if err := r.Err(); !errors.Is(err, errBad) || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
		first := r.Err()
		two := [2]byte{8, 9}
		r.Fill(two[:])
		if r.U8() != 0 || r.U16() != 0 || r.U32() != 0 || r.U64() != 0 || r.Take(0) != nil || r.Count("things", 1, 1, 0) != 0 || two != [2]byte{8, 9} {
			t.Errorf("%s: something is read after the failure", want)
		}
		if r.Fail("other"); r.Done() != first || r.Err() != first || r.Rest() != nil {
			t.Errorf("%s: the failure became %v", want, r.Err())
		}
	}
}

// FuzzReader lets the input itself say what is read of it: no read goes beyond
// the input, and what was read and the rest are the input.
func FuzzReader(f *testing.F) {
	f.Add([]byte{1, 2, 3, 4, 5}, []byte{0, 1, 4, 2, 6})
	f.Add([]byte{0, 2, 'h', 'i', 7}, []byte{5, 0})
	f.Add(make([]byte, 40), []byte{3, 2, 1, 0, 6, 6, 6, 6})
	f.Fuzz(func(t *testing.T, in, ops []byte) {
		r := NewReader(in, errBad)
		var seen []byte
		for _, op := range ops {
			switch op % 7 {
			case 0:
				seen = append(seen, r.U8())
			case 1:
				seen = binary.BigEndian.AppendUint16(seen, r.U16())
			case 2:
				seen = binary.BigEndian.AppendUint32(seen, r.U32())
			case 3:
				seen = binary.BigEndian.AppendUint64(seen, r.U64())
			case 4:
				seen = append(seen, r.Take(int(op/7))...)
			case 5:
				b := r.Block("text", 1<<10)
				seen = append(binary.BigEndian.AppendUint16(seen, uint16(len(b))), b...)
			case 6:
				if n := r.Count("things", int(op), 200, 2); 2*n > len(r.Rest()) {
					t.Fatalf("%d things of two bytes in %d", n, len(r.Rest()))
				}
			}
			if r.Err() != nil {
				if !errors.Is(r.Err(), errBad) || r.Rest() != nil {
					t.Fatalf("failed with %v, rest %v", r.Err(), r.Rest())
				}
				return
			}
			if !bytes.Equal(append(bytes.Clone(seen), r.Rest()...), in) {
				t.Fatalf("read %x and left %x of %x", seen, r.Rest(), in)
			}
		}
	})
}
