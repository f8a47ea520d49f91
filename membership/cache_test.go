package membership

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/membership/record"
)

func TestFileCache(t *testing.T) {
	f := FileCache{Path: filepath.Join(t.TempDir(), "set")}
	if got, err := f.Load(); got != nil || err != nil {
		t.Errorf("no file: %v, %v, want nothing", got, err)
	}
	for _, want := range [][]record.Entry{nil, {vectorEntry}, {vectorEntry, vectorEntry}} {
		if err := f.Save(want); err != nil {
			t.Fatal(err)
		}
		got, err := f.Load()
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	}
	info, err := os.Stat(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode is %v, want 0600", info.Mode().Perm())
	}
	left, err := os.ReadDir(filepath.Dir(f.Path))
	if err != nil || len(left) != 1 {
		t.Errorf("directory holds %v, %v, want the file only", left, err)
	}
}

// TestFileCacheDamage cuts and alters the file everywhere: it is read whole or
// not at all.
func TestFileCacheDamage(t *testing.T) {
	f := FileCache{Path: filepath.Join(t.TempDir(), "set")}
	if err := f.Save([]record.Entry{vectorEntry}); err != nil {
		t.Fatal(err)
	}
	good, err := os.ReadFile(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	try := func(what string, at int, b []byte) {
		t.Helper()
		if err := os.WriteFile(f.Path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := f.Load(); err == nil {
			t.Errorf("%s at %d: read as %v", what, at, got)
		} else if !strings.Contains(err.Error(), f.Path) {
			t.Errorf("error does not name the file: %v", err)
		}
	}
	for i := range good {
		try("cut", i, good[:i])
		b := bytes.Clone(good)
		b[i] ^= 1
		try("altered", i, b)
	}
	try("extended", len(good), append(bytes.Clone(good), 0))
}

func TestFileCacheErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := (FileCache{Path: dir}).Load(); err == nil {
		t.Error("a directory was read")
	}
	if err := (FileCache{Path: filepath.Join(dir, "missing", "set")}).Save(nil); err == nil {
		t.Error("a file was written into a missing directory")
	}
}

// TestCacheIsNotTrusted: what a cache holds is verified like what a peer sends.
func TestCacheIsNotTrusted(t *testing.T) {
	l := newLab(t)
	good, bad := l.identity(1), l.identity(2)
	sign := func(n record.Node) []byte {
		raw, err := record.Sign(n, good.Node)
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	n := content(1, 0)
	n.ID = good.ID
	cache := &memoryCache{entries: []record.Entry{
		{Credential: good.Credential, Record: sign(n)},
		{Credential: bad.Credential, Record: sign(n)},
		vectorEntry,
	}}
	c := l.start(0, func(o *Options) { o.Cache = cache })
	c.until("the good entry", func(s Snapshot) bool { return len(s.Members) == 1 })
	if _, ok := c.Snapshot().Member(good.ID); !ok {
		t.Errorf("restored: %s", describe(c.Snapshot()))
	}
	if got := l.log.count("cached record is left out"); got != 2 {
		t.Errorf("%d entries were left out, want 2", got)
	}
}
