package keystore

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const (
	dirMode  = 0o700
	fileMode = 0o600

	lockName  = "lock"
	tmpPrefix = ".tmp-"

	// maxFile bounds what is read into memory; the largest honest file is the
	// token list, about 600 bytes for each of maxTokens.
	maxFile = 4 << 20
)

// dir is an open directory. Every access goes through root, a handle on the
// directory itself, so that renaming or replacing the path under a running
// process redirects nothing.
type dir struct {
	path string
	root *os.Root
	lock *os.File

	// step, where set, is called before each system call that changes the
	// disk, with the file's name and the call's. An error stops the write
	// there. Tests set it to crash or to fail at every point.
	step func(name, call string) error
}

// openDir opens path, which must be a directory of ours that nobody else can
// enter, and locks it. With create, a missing directory is made.
func openDir(path string, create bool) (*dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	if create {
		if err := makeDir(path); err != nil {
			return nil, fmt.Errorf("create data directory: %w", err)
		}
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("open data directory: %w", err)
	}
	d := &dir{path: path, root: root}
	if err := d.secure(); err != nil {
		_ = d.close()
		return nil, err
	}
	return d, nil
}

// secure checks the directory itself, then takes the lock and removes what a
// crash left of unfinished writes.
func (d *dir) secure() error {
	info, err := d.root.Stat(".")
	if err != nil {
		return fmt.Errorf("open data directory: %w", err)
	}
	// Whoever can write in the directory can replace the keys, and whoever
	// can enter it meets only the files' own modes: both are refused.
	if err := checkOwner(d.path, info, dirMode); err != nil {
		return err
	}
	if err := d.takeLock(); err != nil {
		return err
	}
	return d.sweep()
}

func makeDir(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	err := os.Mkdir(path, dirMode)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// checkOwner refuses what belongs to somebody else or is open to others, and
// names the command that puts it right.
func checkOwner(path string, info fs.FileInfo, want fs.FileMode) error {
	st, ok := info.Sys().(*syscall.Stat_t)
	if ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to user %d, this process runs as %d: run chown %d %s: %w",
			path, st.Uid, os.Geteuid(), os.Geteuid(), path, ErrUnsafe)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("%s has mode %04o: run chmod %04o %s: %w", path, mode, want, path, ErrUnsafe)
	}
	return nil
}

// takeLock holds the directory until close. flock is released by the kernel
// when the process dies, so a crash never leaves a stale lock.
func (d *dir) takeLock() error {
	f, err := d.root.OpenFile(lockName, os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		return fmt.Errorf("lock data directory: %w", err)
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err != nil {
		defer func() { _ = f.Close() }()
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("lock data directory %s: %w", d.path, err)
		}
		return fmt.Errorf("%s%s: stop it, or use another data directory: %w", d.path, lockHolder(f), ErrLocked)
	}
	d.lock = f
	// The number only serves the message above.
	if err := f.Truncate(0); err != nil {
		return fmt.Errorf("lock data directory: %w", err)
	}
	if _, err := f.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return fmt.Errorf("lock data directory: %w", err)
	}
	return nil
}

func lockHolder(f *os.File) string {
	buf := make([]byte, 16)
	n, _ := f.ReadAt(buf, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(buf[:n])))
	if err != nil {
		return ""
	}
	return fmt.Sprintf(" (process %d)", pid)
}

func (d *dir) sweep() error {
	names, err := d.names()
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasPrefix(name, tmpPrefix) {
			continue
		}
		if err := d.root.Remove(name); err != nil {
			return fmt.Errorf("remove unfinished file: %w", err)
		}
	}
	return nil
}

func (d *dir) names() ([]string, error) {
	f, err := d.root.Open(".")
	if err != nil {
		return nil, fmt.Errorf("list data directory: %w", err)
	}
	defer func() { _ = f.Close() }()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list data directory: %w", err)
	}
	return names, nil
}

func (d *dir) close() error {
	var err error
	if d.lock != nil {
		err = d.lock.Close()
	}
	return errors.Join(err, d.root.Close())
}

func (d *dir) file(name string) string { return filepath.Join(d.path, name) }

func (d *dir) exists(name string) bool {
	_, err := d.root.Lstat(name)
	return err == nil
}

// read returns the content of a file that is regular, ours, and closed to
// others. A missing file is fs.ErrNotExist.
func (d *dir) read(name string) ([]byte, error) {
	info, err := d.root.Lstat(name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", d.file(name), err)
	}
	// Checked before opening: opening a FIFO would wait for its other end.
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: is not a regular file: %w", d.file(name), ErrUnsafe)
	}
	f, err := d.root.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", d.file(name), err)
	}
	defer func() { _ = f.Close() }()
	if info, err = f.Stat(); err != nil {
		return nil, fmt.Errorf("read %s: %w", d.file(name), err)
	}
	if err := checkOwner(d.file(name), info, fileMode); err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", d.file(name), err)
	}
	if len(b) > maxFile {
		return nil, fmt.Errorf("read %s: larger than %d bytes: %w", d.file(name), maxFile, ErrCorrupt)
	}
	return b, nil
}

func (d *dir) at(name, call string) error {
	if d.step == nil {
		return nil
	}
	if err := d.step(name, call); err != nil {
		return fmt.Errorf("write %s: %s: %w", d.file(name), call, err)
	}
	return nil
}

func tempName() string { return tmpPrefix + strconv.FormatUint(rand.Uint64(), 36) }
