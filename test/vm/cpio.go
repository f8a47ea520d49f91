package vm

import (
	"bufio"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
)

// archive writes an initramfs: a cpio archive in the "newc" format (kernel
// documentation, driver-api/early-userspace/buffer-format).
type archive struct {
	w    *bufio.Writer
	size int64 // written, for alignment to 4 bytes
	ino  int
	dirs map[string]bool
}

func newArchive(w io.Writer) *archive {
	return &archive{w: bufio.NewWriterSize(w, 1<<20), dirs: map[string]bool{".": true, "/": true}}
}

// header writes an entry's header and name. Mode holds type and permissions
// as in stat(2).
func (a *archive) header(name string, mode uint32, size int64) error {
	a.ino++
	nlink := 1
	n, err := fmt.Fprintf(a.w, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.ino, mode, 0, 0, nlink, 0, size, 0, 0, 0, 0, len(name)+1, 0, name)
	a.size += int64(n)
	if err != nil {
		return err
	}
	return a.pad()
}

func (a *archive) pad() error {
	for a.size%4 != 0 {
		if err := a.w.WriteByte(0); err != nil {
			return err
		}
		a.size++
	}
	return nil
}

// dir adds a folder and those above it.
func (a *archive) dir(name string) error {
	if a.dirs[name] {
		return nil
	}
	if err := a.dir(path.Dir(name)); err != nil {
		return err
	}
	a.dirs[name] = true
	return a.header(name, 0o040755, 0)
}

// bytes adds a file with the given content.
func (a *archive) bytes(name string, perm fs.FileMode, content []byte) error {
	if err := a.dir(path.Dir(name)); err != nil {
		return err
	}
	if err := a.header(name, 0o100000|uint32(perm.Perm()), int64(len(content))); err != nil {
		return err
	}
	n, err := a.w.Write(content)
	a.size += int64(n)
	if err != nil {
		return err
	}
	return a.pad()
}

// file adds a copy of a file of this machine.
func (a *archive) file(name, from string) error {
	st, err := os.Stat(from)
	if err != nil {
		return err
	}
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return a.bytes(name, st.Mode(), content)
}

// tree adds a copy of a folder of this machine. A missing one is no error.
func (a *archive) tree(name, from string) error {
	if _, err := os.Stat(from); os.IsNotExist(err) {
		return nil
	}
	return filepath.WalkDir(from, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel, err := filepath.Rel(from, p)
		if err != nil {
			return err
		}
		return a.file(path.Join(name, filepath.ToSlash(rel)), p)
	})
}

// close ends the archive.
func (a *archive) close() error {
	if err := a.header("TRAILER!!!", 0, 0); err != nil {
		return err
	}
	return a.w.Flush()
}
