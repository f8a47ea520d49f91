package keystore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
)

func FuzzParseKeyLine(f *testing.F) {
	good := nodeKeyTag + hex.EncodeToString(bytes.Repeat([]byte{7}, 32)) + "\n"
	for _, s := range []string{"", nodeKeyTag, good, good[:len(good)-1], good + "\n", noiseKeyTag + good[len(nodeKeyTag):]} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		raw, err := parseKeyLine(nodeKeyTag, b)
		if err != nil {
			if len(b) > 40 && bytes.Contains([]byte(err.Error()), b[20:36]) {
				t.Error("the error repeats its input")
			}
			return
		}
		if nodeKeyTag+hex.EncodeToString(raw)+"\n" != string(b) {
			t.Errorf("%q is accepted", b)
		}
	})
}

func FuzzParseDeparture(f *testing.F) {
	for _, s := range []string{"", leftTag, leftTag + "1767225600 telling\n", leftTag + "0 ending\n", leftTag + "-1 ending\n", leftTag + "01 ending\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := parseDeparture(b)
		switch {
		case err == nil && (d.at.IsZero() || !bytes.Equal(d.encode(), b)):
			t.Errorf("%q is read as %+v", b, d)
		case err != nil && (d != departure{} || !errors.Is(err, ErrCorrupt)):
			t.Errorf("%q: %+v, %v", b, d, err)
		}
	})
}

func FuzzParseMembership(f *testing.F) {
	dir := filepath.Join(f.TempDir(), "data")
	s, err := Init(dir, InitOptions{Hostname: "a", Now: time.Unix(1767225600, 0)})
	if err != nil {
		f.Fatal(err)
	}
	good, err := os.ReadFile(filepath.Join(dir, nodeCertName))
	if err := errors.Join(err, s.Close()); err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add(bytes.ToUpper(good))
	f.Add([]byte("\n\n\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMembership(b)
		if err == nil && !bytes.Equal(m.encode(), b) {
			t.Errorf("%q is written as %q", b, m.encode())
		}
	})
}

// FuzzUnseal: what is accepted is stable, and damage has one of two names.
func FuzzUnseal(f *testing.F) {
	good, err := seal(ledger{NextSerial: 2, Tokens: []token{{Created: time.Unix(1767225600, 0).UTC(), Limit: 1, Uses: []use{{}}, Waiting: []waiting{{}}}}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)/2])
	f.Add([]byte("{}"))
	f.Add([]byte(`{"version":2,"sha256":"","body":{}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var l ledger
		if err := unseal(b, &l); err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrNewerVersion) {
				t.Errorf("%q: %v", b, err)
			}
			return
		}
		again, err := seal(l)
		if err != nil {
			t.Fatal(err)
		}
		var back ledger
		if err := unseal(again, &back); err != nil {
			t.Errorf("%q is written as %q, which is refused: %v", b, again, err)
		}
	})
}
