package keystore

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

// unsignedItem is what SignItem gets; only its beginning matters here.
func unsignedItem(i *Issuer, text string) []byte {
	return append(append([]byte(keys.DomainItem), i.trust.Cluster[:]...), text...)
}

func signItem(t *testing.T, i *Issuer, slot string, version uint64, text string) []byte {
	t.Helper()
	b, err := i.SignItem(time.Now(), slot, version, unsignedItem(i, text))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestSignItem(t *testing.T) {
	s, _ := founded(t)
	i := issuerOf(t, s)
	raw := signItem(t, i, "\x01", 2, "two")
	sig := [keys.SignatureSize]byte(raw[len(raw)-keys.SignatureSize:])
	d, err := keys.ParseDelegation(i.Delegation())
	if err != nil {
		t.Fatal(err)
	}
	if !d.Issuer.Verify(keys.DomainItem, raw[len(keys.DomainItem):len(raw)-keys.SignatureSize], sig) {
		t.Error("the signature is not the issuer's")
	}
	for name, c := range map[string]struct {
		now      time.Time
		unsigned []byte
	}{
		"another domain":         {time.Now(), append([]byte("so-cert-v1"), i.trust.Cluster[:]...)},
		"another cluster":        {time.Now(), append([]byte(keys.DomainItem), make([]byte, 16)...)},
		"too large":              {time.Now(), unsignedItem(i, strings.Repeat("x", maxItem))},
		"after the delegation":   {time.Now().AddDate(20, 0, 0), unsignedItem(i, "x")},
		"clock before it begins": {time.Unix(0, 0), unsignedItem(i, "x")},
	} {
		if _, err := i.SignItem(c.now, "\x01", 3, c.unsigned); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	if again := signItem(t, i, "\x01", 2, "another text"); !bytes.Equal(again, raw) {
		t.Error("one version was signed twice")
	}
	closeStore(t, s)
	if _, err := i.SignItem(time.Now(), "\x01", 2, unsignedItem(i, "two")); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v, want ErrClosed", err)
	}
}

// TestSignHeartbeat: any number of them, without a trace on the disk, and nothing
// that is not one.
func TestSignHeartbeat(t *testing.T) {
	s, dir := founded(t)
	i := issuerOf(t, s)
	head := append(append([]byte(keys.DomainItem), i.trust.Cluster[:]...), keys.ItemHeartbeat)
	d, err := keys.ParseDelegation(i.Delegation())
	if err != nil {
		t.Fatal(err)
	}
	s.dir.step = func(name, op string) error { return fmt.Errorf("%s of %s", op, name) } // no write may happen
	for _, text := range []string{"one", "two", "one"} {
		unsigned := append(bytes.Clone(head), text...)
		raw, err := i.SignHeartbeat(time.Now(), unsigned)
		if err != nil || !bytes.HasPrefix(raw, unsigned) {
			t.Fatalf("%s: %v", text, err)
		}
		if sig := [keys.SignatureSize]byte(raw[len(unsigned):]); !d.Issuer.Verify(keys.DomainItem, unsigned[len(keys.DomainItem):], sig) {
			t.Errorf("%s: the signature is not the issuer's", text)
		}
	}
	other := bytes.Clone(head)
	other[len(keys.DomainItem)] ^= 1
	for name, c := range map[string]struct {
		now      time.Time
		unsigned []byte
	}{
		"a target":               {time.Now(), unsignedItem(i, "\x01")},
		"a revocation":           {time.Now(), unsignedItem(i, "\x02")},
		"no kind":                {time.Now(), unsignedItem(i, "")},
		"another domain":         {time.Now(), append([]byte("so-cert-v1"), head[len(keys.DomainItem):]...)},
		"another cluster":        {time.Now(), other},
		"too large":              {time.Now(), append(bytes.Clone(head), make([]byte, maxItem)...)},
		"after the delegation":   {time.Now().AddDate(20, 0, 0), head},
		"clock before it begins": {time.Unix(0, 0), head},
	} {
		if _, err := i.SignHeartbeat(c.now, c.unsigned); err == nil {
			t.Errorf("%s: signed", name)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, itemsName)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the issuer has kept something: %v", err)
	}
	s.dir.step = nil
	closeStore(t, s)
	if _, err := i.SignHeartbeat(time.Now(), head); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v, want ErrClosed", err)
	}
}

// TestSignedItemsOutliveTheProcess: after a restart the same version gives the
// same item, and each slot has its own.
func TestSignedItemsOutliveTheProcess(t *testing.T) {
	s, _ := founded(t)
	i := issuerOf(t, s)
	one, other := signItem(t, i, "\x01", 5, "one"), signItem(t, i, "\x02key", 1, "other")
	s = reopen(t, s)
	i = issuerOf(t, s)
	if got := signItem(t, i, "\x01", 5, "changed"); !bytes.Equal(got, one) {
		t.Error("version 5 was signed again")
	}
	if got := signItem(t, i, "\x01", 4, "lower"); !bytes.Equal(got, one) {
		t.Error("a lower version did not give the newest item")
	}
	if got := signItem(t, i, "\x02key", 1, "changed"); !bytes.Equal(got, other) {
		t.Error("another slot was signed again")
	}
	if got := signItem(t, i, "\x01", 6, "six"); bytes.Equal(got, one) {
		t.Error("a higher version was not signed")
	}
}

// TestFailureAtEveryStepOfSignItem fails each write step once: nothing is
// given out, and the next request for the version, before or after a restart,
// gets one item.
func TestFailureAtEveryStepOfSignItem(t *testing.T) {
	for n := 1; ; n++ {
		s, _ := founded(t)
		i := issuerOf(t, s)
		first := signItem(t, i, "\x01", 1, "one")
		step, failed := 0, false
		s.dir.step = func(string, string) error {
			if step++; step == n {
				failed = true
				return syscall.ENOSPC
			}
			return nil
		}
		b, err := i.SignItem(time.Now(), "\x01", 2, unsignedItem(i, "two"))
		if !failed {
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("failed at each of %d steps", n-1)
			if n < 5 {
				t.Errorf("only %d steps", n-1)
			}
			return
		}
		if b != nil || !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("step %d: %v, want the disk's error", n, err)
		}
		two := signItem(t, i, "\x01", 2, "two again")
		s = reopen(t, s)
		if got := signItem(t, issuerOf(t, s), "\x01", 2, "third"); !bytes.Equal(got, two) || bytes.Equal(got, first) {
			t.Errorf("step %d: version 2 was given out twice", n)
		}
	}
}

// TestItemsFileDamaged: the copy is used, then nothing; both with a warning,
// and the issuer goes on.
func TestItemsFileDamaged(t *testing.T) {
	s, dir := founded(t)
	i := issuerOf(t, s)
	signItem(t, i, "\x01", 1, "one")
	one := signItem(t, i, "\x01", 1, "")
	signItem(t, i, "\x01", 2, "two")
	closeStore(t, s)
	damage := func(name string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	open := func(want string) *Issuer {
		t.Helper()
		var err error
		if s, err = Open(dir); err != nil {
			t.Fatal(err)
		}
		if w := fmt.Sprint(s.Warnings()); !strings.Contains(w, want) {
			t.Errorf("warnings %s, want %q", w, want)
		}
		return issuerOf(t, s)
	}
	damage(itemsName)
	if got := signItem(t, open("the copy before it"), "\x01", 1, ""); !bytes.Equal(got, one) {
		t.Error("the copy before was not used")
	}
	closeStore(t, s)
	damage(itemsName)
	damage(itemsName + prevSuffix)
	three := signItem(t, open("has forgotten"), "\x01", 3, "three")
	s = reopen(t, s)
	if got := signItem(t, issuerOf(t, s), "\x01", 3, ""); !bytes.Equal(got, three) || len(s.Warnings()) != 0 {
		t.Errorf("the file was not made anew: warnings %q", s.Warnings())
	}
}

func TestItemSlotsAreBounded(t *testing.T) {
	s, _ := founded(t)
	i := issuerOf(t, s)
	for n := range maxSlots {
		i.items.Items = append(i.items.Items, signedItem{Slot: fmt.Sprint(n), Version: 1})
	}
	if _, err := i.SignItem(time.Now(), "\x09new", 1, unsignedItem(i, "x")); err == nil {
		t.Error("one slot too many was signed")
	}
}
