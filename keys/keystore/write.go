package keystore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// The writes below follow one order, so that after a crash at any point a
// name holds its old content or its new content, whole: the content goes to a
// temporary file (created exclusively with mode 0600, so it is never readable
// by others and never somebody's prepared file), is flushed, gets its name by
// an atomic call, and the directory is flushed. A nil error means that the
// new content survives a power cut.

// replace gives name new content, whether or not it exists.
func (d *dir) replace(name string, content []byte) error {
	return d.put(name, content, d.root.Rename)
}

// create gives name its first content; fs.ErrExist if there is one. A hard
// link fails where a rename would overwrite.
func (d *dir) create(name string, content []byte) error {
	return d.put(name, content, func(tmp, name string) error {
		if err := d.root.Link(tmp, name); err != nil {
			return err
		}
		return d.root.Remove(tmp)
	})
}

// createPlain writes the name itself, exclusively, without a temporary file:
// for file systems of removable media, which have no hard links. After a crash
// the file may be cut short.
func (d *dir) createPlain(name string, content []byte) error {
	err := d.fill(name, name, content)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("write %s: %w", d.file(name), err)
	}
	if err == nil {
		err = d.sync()
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", d.file(name), errors.Join(err, d.root.Remove(name)))
	}
	return nil
}

// replaceKeeping is replace that leaves the content before at prev.
func (d *dir) replaceKeeping(name, prev string, content []byte) error {
	return d.put(name, content, func(tmp, name string) error {
		if err := d.keep(name, prev); err != nil {
			return err
		}
		if err := d.at(name, "rename"); err != nil {
			return err
		}
		return d.root.Rename(tmp, name)
	})
}

// keep makes prev another name of name's present content. The name itself
// stays where it is, so that at no time there is none.
func (d *dir) keep(name, prev string) error {
	if err := d.at(prev, "link"); err != nil {
		return err
	}
	tmp := tempName()
	if err := d.root.Link(name, tmp); err != nil {
		return err
	}
	if err := d.root.Rename(tmp, prev); err != nil {
		return errors.Join(err, d.root.Remove(tmp))
	}
	// rename(2) does nothing where both names are the same file already, which
	// a crash right after an earlier keep can leave behind.
	if err := d.root.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// remove takes name away for good; that it is not there is no error.
func (d *dir) remove(name string) error {
	if err := d.at(name, "remove"); err != nil {
		return fmt.Errorf("remove %s: %w", d.file(name), err)
	}
	err := d.root.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = d.sync()
	}
	if err != nil {
		return fmt.Errorf("remove %s: %w", d.file(name), err)
	}
	return nil
}

func (d *dir) put(name string, content []byte, install func(tmp, name string) error) (err error) {
	tmp := tempName()
	defer func() {
		if err == nil {
			return
		}
		err = fmt.Errorf("write %s: %w", d.file(name), err)
		if e := d.root.Remove(tmp); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}()
	if err := d.fill(tmp, name, content); err != nil {
		return err
	}
	if err := d.at(name, "install"); err != nil {
		return err
	}
	if err := install(tmp, name); err != nil {
		return err
	}
	if err := d.at(name, "sync directory"); err != nil {
		return err
	}
	return d.sync()
}

func (d *dir) fill(tmp, name string, content []byte) (err error) {
	if err := d.at(name, "create"); err != nil {
		return err
	}
	f, err := d.root.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, fileMode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := d.at(name, "write"); err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := d.at(name, "sync"); err != nil {
		return err
	}
	return f.Sync()
}

// appendLine adds a line to a log and flushes it. If the last write was torn,
// the remains get a line of their own.
func (d *dir) appendLine(name string, line []byte) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("append to %s: %w", d.file(name), err)
		}
	}()
	if err := d.at(name, "open"); err != nil {
		return err
	}
	created := !d.exists(name)
	f, err := d.root.OpenFile(name, os.O_RDWR|os.O_APPEND|os.O_CREATE, fileMode)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if err := checkOwner(d.file(name), info, fileMode); err != nil {
		return err
	}
	last := []byte{'\n'}
	if info.Size() > 0 {
		if _, err := f.ReadAt(last, info.Size()-1); err != nil {
			return err
		}
	}
	if last[0] != '\n' {
		line = append([]byte{'\n'}, line...)
	}
	if err := d.at(name, "write"); err != nil {
		return err
	}
	if _, err := f.Write(append(line, '\n')); err != nil {
		return err
	}
	if err := d.at(name, "sync"); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if created {
		return d.sync()
	}
	return nil
}

func (d *dir) sync() error {
	f, err := d.root.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

func syncDir(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
