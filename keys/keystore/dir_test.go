package keystore

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

func TestFilesAreClosedToOthers(t *testing.T) {
	// The modes must not depend on the caller's umask.
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	s, dir := founded(t)
	newToken(t, issuerOf(t, s), time.Now())
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != dirMode {
		t.Errorf("data directory: mode %v, %v", info.Mode(), err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		info, err := e.Info()
		if err != nil || info.Mode() != fileMode {
			t.Errorf("%s: mode %v, %v", e.Name(), info.Mode(), err)
		}
		if strings.HasPrefix(e.Name(), tmpPrefix) {
			t.Errorf("%s was left behind", e.Name())
		}
	}
}

// Whoever watches the directory never sees a file with a wider mode, not even
// for an instant: every write step finds modes 0600 only.
func TestNoStepShowsAWiderMode(t *testing.T) {
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	s, dir := founded(t)
	steps := 0
	s.dir.step = func(name, call string) error {
		steps++
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Error(err)
		}
		for _, e := range entries {
			if info, err := e.Info(); err != nil || info.Mode() != fileMode {
				t.Errorf("at %s of %s: %s has mode %v, %v", call, name, e.Name(), info.Mode(), err)
			}
		}
		return nil
	}
	i := issuerOf(t, s)
	tok := newToken(t, i, time.Now())
	if _, err := i.Issue(time.Now(), netip.Addr{}, tok.ID, newJoiner(t).request("a")); err != nil {
		t.Fatal(err)
	}
	if steps < 10 {
		t.Errorf("only %d steps were seen", steps)
	}
}

func TestOpenRefusesWideModes(t *testing.T) {
	s, dir := founded(t)
	closeStore(t, s)
	refused := func(path string, mode fs.FileMode) {
		t.Helper()
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		st, err := Open(dir)
		if err == nil {
			closeStore(t, st)
		}
		if !errors.Is(err, ErrUnsafe) || !strings.Contains(err.Error(), "chmod") || !strings.Contains(err.Error(), path) {
			t.Errorf("mode %04o of %s: %v, want ErrUnsafe naming chmod and the path", mode, path, err)
		}
		if err := os.Chmod(path, info.Mode()); err != nil {
			t.Fatal(err)
		}
	}
	for _, mode := range []fs.FileMode{0o750, 0o701, 0o770, 0o755} {
		refused(dir, mode)
	}
	for _, name := range []string{nodeKeyName, noiseKeyName, accessKeyName, issuerKeyName, nodeCertName, issuerCertName, stateName, tokensName} {
		for _, mode := range []fs.FileMode{0o640, 0o620, 0o604, 0o602} {
			refused(filepath.Join(dir, name), mode)
		}
	}
	if s, err := Open(dir); err != nil {
		t.Errorf("with all modes restored: %v", err)
	} else {
		closeStore(t, s)
	}
}

func TestOpenRefusesForeignOwner(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Log("not root: only the check itself can be tested")
		info, err := os.Stat("/")
		if err != nil {
			t.Fatal(err)
		}
		if err := checkOwner("/", info, dirMode); !errors.Is(err, ErrUnsafe) {
			t.Errorf("directory of root: %v", err)
		}
		return
	}
	s, dir := founded(t)
	closeStore(t, s)
	key := filepath.Join(dir, nodeKeyName)
	for _, path := range []string{dir, key} {
		if err := os.Chown(path, 12345, -1); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); !errors.Is(err, ErrUnsafe) || !strings.Contains(err.Error(), "chown") {
			t.Errorf("%s of another user: %v, want ErrUnsafe naming chown", path, err)
		}
		if err := os.Chown(path, 0, -1); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOpenRefusesOtherThanFiles(t *testing.T) {
	s, dir := founded(t)
	closeStore(t, s)
	key := filepath.Join(dir, nodeKeyName)
	moved := filepath.Join(dir, "moved")
	if err := os.Rename(key, moved); err != nil {
		t.Fatal(err)
	}
	for what, make := range map[string]func() error{
		"symbolic link": func() error { return os.Symlink("moved", key) },
		"FIFO":          func() error { return syscall.Mkfifo(key, 0o600) },
		"directory":     func() error { return os.Mkdir(key, 0o700) },
	} {
		if err := make(); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); !errors.Is(err, ErrUnsafe) {
			t.Errorf("%s in place of a key: %v, want ErrUnsafe", what, err)
		}
		if err := os.Remove(key); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(t.TempDir(), "f"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(moved); err == nil {
		t.Error("a file was opened as data directory")
	}
}

func TestOneProcessAtATime(t *testing.T) {
	s, dir := founded(t)
	for name, open := range map[string]func() (*Store, error){
		"Open":    func() (*Store, error) { return Open(dir) },
		"Init":    func() (*Store, error) { return Init(dir, InitOptions{Hostname: "x"}) },
		"Prepare": func() (*Store, error) { return Prepare(dir, "x") },
	} {
		_, err := open()
		if !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
			t.Errorf("%s of a directory in use: %v, want ErrLocked naming it", name, err)
		}
	}
	s = reopen(t, s)
	closeStore(t, s)
	closeStore(t, s)
}

func TestInitNeverOverwrites(t *testing.T) {
	s, dir := founded(t)
	closeStore(t, s)
	before := contents(t, dir)
	if _, err := Init(dir, InitOptions{Hostname: "x"}); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "up") || !strings.Contains(err.Error(), dir) {
		t.Errorf("Init of a member: %v, want ErrExists naming the directory and up", err)
	}
	if _, err := Prepare(dir, "x"); !errors.Is(err, ErrExists) {
		t.Errorf("Prepare of a member: %v, want ErrExists", err)
	}
	sameContents(t, before, contents(t, dir))

	prepared := filepath.Join(t.TempDir(), "p")
	p, err := Prepare(prepared, "x")
	if err != nil {
		t.Fatal(err)
	}
	first, err := p.Identity()
	if err != nil {
		t.Fatal(err)
	}
	id := first.Node.Public()
	closeStore(t, p)
	before = contents(t, prepared)
	if _, err := Init(prepared, InitOptions{Hostname: "x"}); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "join") {
		t.Errorf("Init of a prepared directory: %v, want ErrExists naming join", err)
	}
	if _, err := Open(prepared); !errors.Is(err, ErrNotInitialised) {
		t.Errorf("Open of a prepared directory: %v, want ErrNotInitialised", err)
	}
	sameContents(t, before, contents(t, prepared))
	p, err = Prepare(prepared, "renamed")
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, p)
	if again, err := p.Identity(); err != nil || again.Node.Public() != id || again.Hostname != "renamed" {
		t.Errorf("Prepare again: %v %q, %v", again.ID, again.Hostname, err)
	}
}

func TestRootKeyFile(t *testing.T) {
	dir, usb := t.TempDir(), t.TempDir()
	rootFile := filepath.Join(usb, "cluster-root")
	data := filepath.Join(dir, "data")
	s, err := Init(data, InitOptions{Hostname: "a", RootKeyFile: rootFile})
	if err != nil {
		t.Fatal(err)
	}
	defer closeStore(t, s)
	b, err := os.ReadFile(rootFile)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := parseKeyLine(rootKeyTag, b)
	if err != nil {
		t.Fatal(err)
	}
	root, err := keys.RootPrivateFromRaw32(raw)
	if err != nil {
		t.Fatal(err)
	}
	id, err := s.Identity()
	if err != nil || root.Public() != id.Trust.Root {
		t.Errorf("root key file is for %v, trust is %v, %v", root.Public(), id.Trust.Root, err)
	}
	// Nothing in the data directory holds the root key.
	for name, content := range contents(t, data) {
		if strings.Contains(content, string(b[len(rootKeyTag):len(b)-1])) || strings.Contains(content, string(raw)) {
			t.Errorf("%s holds the root key", name)
		}
	}
	// A second cluster must not overwrite the first one's root key, and leaves
	// nothing behind when it cannot write its own.
	second := filepath.Join(dir, "second")
	if _, err := Init(second, InitOptions{Hostname: "b", RootKeyFile: rootFile}); !errors.Is(err, fs.ErrExist) {
		t.Errorf("Init over a root key: %v, want ErrExist", err)
	}
	if left := contents(t, second); len(left) != 1 {
		t.Errorf("a failed Init left %d files, want the lock only", len(left))
	}
	if after, err := os.ReadFile(rootFile); err != nil || string(after) != string(b) {
		t.Error("the root key file was changed")
	}
}

func TestInitFailsAtEveryStep(t *testing.T) {
	broken := errors.New("disk is broken")
	for n := 0; ; n++ {
		dir := filepath.Join(t.TempDir(), "data")
		d, err := openDir(dir, true)
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		d.step = func(string, string) error {
			count++
			if count == n+1 {
				return broken
			}
			return nil
		}
		s, err := finish(d, func(s *Store) error { return s.found(InitOptions{Hostname: "a", Now: time.Now()}) })
		if err == nil {
			closeStore(t, s)
			t.Logf("failed at each of %d steps", n)
			if n < 30 {
				t.Errorf("only %d steps", n)
			}
			return
		}
		if !errors.Is(err, broken) {
			t.Fatalf("step %d: %v", n, err)
		}
		if left := contents(t, dir); len(left) != 1 {
			t.Errorf("step %d: a failed Init left %v", n, names(left))
		}
		// What is left allows another try.
		s, err = Init(dir, InitOptions{Hostname: "a"})
		if err != nil {
			t.Errorf("step %d: Init again: %v", n, err)
			continue
		}
		closeStore(t, s)
	}
}

// contents reads every file of a directory.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, e := range entries {
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = string(b)
	}
	return out
}

func names(m map[string]string) []string {
	var out []string
	for n := range m {
		out = append(out, n)
	}
	return out
}

func sameContents(t *testing.T, a, b map[string]string) {
	t.Helper()
	for name := range a {
		if name != lockName && a[name] != b[name] {
			t.Errorf("%s was changed", name)
		}
	}
	if len(a) != len(b) {
		t.Errorf("files before %v, after %v", names(a), names(b))
	}
}
