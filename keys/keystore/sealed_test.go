package keystore

import (
	"bytes"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/secure-overlay/secure-overlay/keys"
)

const secretText = "correct horse battery"

func given(text string) func() ([]byte, error) {
	return func() ([]byte, error) { return []byte(text), nil }
}

func TestSealedRootKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "away.key")
	s, err := Init(filepath.Join(t.TempDir(), "data"), InitOptions{Hostname: "a", RootKeyFile: path, RootPassphrase: []byte(secretText)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeStore(t, s) })
	id, err := s.Identity()
	if err != nil {
		t.Fatal(err)
	}
	root, err := ReadRootKey(path, given(secretText))
	if err != nil || root.Public() != id.Trust.Root {
		t.Fatalf("another key, or %v", err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	root.Expose(func(raw []byte) {
		if bytes.Contains(content, raw) || bytes.Contains(content, keyLine("", root)[:64]) {
			t.Error("the file holds the key in clear")
		}
	})
	if _, err := ReadRootKey(path, given("correct horse batterz")); !errors.Is(err, ErrPassphrase) {
		t.Errorf("another passphrase: %v", err)
	}
	stop := errors.New("nobody there")
	if _, err := ReadRootKey(path, func() ([]byte, error) { return nil, stop }); !errors.Is(err, stop) {
		t.Errorf("without passphrase: %v", err)
	}
	// A file without passphrase asks for none.
	plain := first(t)
	if _, err := ReadRootKey(filepath.Join(plain.Dir(), "root.key"), func() ([]byte, error) { return nil, stop }); err != nil {
		t.Errorf("a plain file: %v", err)
	}
}

// TestSealedRootKeyFlips: no changed byte goes unnoticed, and none makes reading
// cost more than the bounds.
func TestSealedRootKeyFlips(t *testing.T) {
	root, err := keys.NewRootPrivate()
	if err != nil {
		t.Fatal(err)
	}
	line, err := sealRoot(root, []byte(secretText))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := parseObjectLine(sealedRootTag, bytes.TrimSuffix(line, []byte("\n")))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []int{0, 1, 2, 3, 4, 5, 6, 8, 9, 10, sealHead - 1, sealHead, sealedLength - 49, sealedLength - 1} {
		b := bytes.Clone(raw)
		b[n] ^= 1
		if got, err := openRoot(objectLine(sealedRootTag, b), []byte(secretText)); err == nil || !got.IsZero() {
			t.Errorf("byte %d changed: accepted", n)
		}
	}
	for name, text := range map[string]string{
		"cut":      base64.StdEncoding.EncodeToString(raw[:len(raw)-1]),
		"longer":   base64.StdEncoding.EncodeToString(append(bytes.Clone(raw), 0)),
		"nothing":  "",
		"no lanes": base64.StdEncoding.EncodeToString(append(append(bytes.Clone(raw[:9]), 0), raw[10:]...)),
	} {
		if _, err := openRoot([]byte(sealedRootTag+text+"\n"), []byte(secretText)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := sealRoot(root, []byte("short")); err == nil {
		t.Error("a short passphrase is accepted")
	}
}
