package keys

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"strings"
	"testing"
)

func TestParseTokenErrors(t *testing.T) {
	c := fixedCluster(t)
	text := c.token.Encode()
	mid := len(text) / 2
	other := "A"
	if text[mid] == 'A' {
		other = "B"
	}
	for _, tt := range []struct {
		name, text string
		want       error
	}{
		{"empty", "", ErrNotToken},
		{"something else", "hello world", ErrNotToken},
		{"a public key", c.root.Public().String(), ErrNotToken},
		{"version 0", "SO0" + text[3:], ErrNotToken},
		{"newer version", "SO2" + text[3:], ErrTokenVersion},
		{"newer version, other length", "so9abc", ErrTokenVersion},
		{"prefix only", "SO1", ErrTokenTruncated},
		{"part of the prefix", "SO", ErrTokenTruncated},
		{"one character less", text[:len(text)-1], ErrTokenTruncated},
		{"half", text[:mid], ErrTokenTruncated},
		{"mistyped", text[:mid] + other + text[mid+1:], ErrTokenMistyped},
		{"swapped", text[:mid] + "Q7" + text[mid+2:], ErrTokenMistyped},
		{"one character more", text + "A", ErrTokenMistyped},
		{"twice", text + text, ErrTokenMistyped},
		{"wrong alphabet", text[:mid] + "0" + text[mid+1:], ErrTokenMistyped},
		{"space inside", text[:mid] + " " + text[mid:], ErrTokenMistyped},
		{"line break inside", text[:mid] + "\n" + text[mid:], ErrTokenMistyped},
		{"padding", text + "====", ErrTokenMistyped},
		{"letter of another script", "ſO1" + text[3:], ErrNotToken},
		{"very long", text + strings.Repeat("A", 1<<20), ErrTokenMistyped},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ParseToken(tt.text)
			if !errors.Is(err, tt.want) {
				t.Fatalf("ParseToken: %v, want %v", err, tt.want)
			}
			for i := 3; i+6 <= len(tt.text) && i < 400; i++ {
				if strings.Contains(err.Error(), tt.text[i:i+6]) {
					t.Fatalf("the error repeats the input: %v", err)
				}
			}
		})
	}
	for n := 4; n < len(text); n++ {
		if _, err := ParseToken(text[:n]); !errors.Is(err, ErrTokenTruncated) {
			t.Errorf("cut to %d characters: %v, want ErrTokenTruncated", n, err)
		}
	}
}

// seal gives token content a right length and checksum, as only somebody who
// means it can.
func sealToken(content []byte) string {
	b := append([]byte{uint8(1 + len(content) + crc32.Size)}, content...)
	b = binary.BigEndian.AppendUint32(b, tokenSum(b))
	return tokenPrefix + tokenText().EncodeToString(b)
}

// content returns the bytes of a token between length and checksum.
func tokenContent(t testing.TB, tok Token) []byte {
	t.Helper()
	raw, err := decodeToken(strings.TrimPrefix(tok.Encode(), tokenPrefix))
	if err != nil {
		t.Fatal(err)
	}
	return raw[1 : len(raw)-crc32.Size]
}

func TestParseTokenWithRightChecksum(t *testing.T) {
	c := fixedCluster(t)
	good := tokenContent(t, c.token)
	if _, err := ParseToken(sealToken(good)); err != nil {
		t.Fatalf("sealed again: %v", err)
	}
	change := func(at int, b ...byte) []byte {
		out := append([]byte(nil), good...)
		copy(out[at:], b)
		return out
	}
	const rootAt, idAt, secretAt, countAt = 16, 48, 56, 88
	for name, content := range map[string][]byte{
		"root zero":         change(rootAt, make([]byte, 32)...),
		"ID zero":           change(idAt, make([]byte, 8)...),
		"secret zero":       change(secretAt, make([]byte, 32)...),
		"four seeds":        change(countAt, 4),
		"fewer seeds":       change(countAt, 1),
		"family 5":          change(countAt+1, 5),
		"port 0":            change(countAt+6, 0, 0),
		"address 0.0.0.0":   change(countAt+2, 0, 0, 0, 0),
		"address 239.0.0.1": change(countAt+2, 239),
		"byte missing":      good[:len(good)-1],
		"byte too many":     append(append([]byte(nil), good...), 0),
	} {
		if _, err := ParseToken(sealToken(content)); !errors.Is(err, ErrMalformed) && !errors.Is(err, ErrTokenMistyped) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
}
