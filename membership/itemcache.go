package membership

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/google/renameio/v2"
)

const (
	itemsMagic = "so-items-v1"
	// maxItemsFile bounds the file: a full set of the largest items is 1.5 MB.
	maxItemsFile = 2 << 20
)

// FileItems keeps cluster items in one file, which is replaced as a whole and
// flushed, so a crash leaves the old or the new one. Format: "so-items-v1", count
// u16, of each item its length u16 and bytes, SHA-256 of all before it.
type FileItems struct{ Path string }

var _ ItemCache = FileItems{}

// Load returns the stored items, none if there is no file.
func (f FileItems) Load() ([][]byte, error) {
	file, err := os.Open(f.Path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load cluster items: %w", err)
	}
	defer func() { _ = file.Close() }()
	b, err := io.ReadAll(io.LimitReader(file, maxItemsFile+1))
	if err != nil {
		return nil, fmt.Errorf("load cluster items %s: %w", f.Path, err)
	}
	out, err := parseItemsFile(b)
	if err != nil {
		return nil, fmt.Errorf("load cluster items %s: %w", f.Path, err)
	}
	return out, nil
}

func parseItemsFile(b []byte) ([][]byte, error) {
	if len(b) < len(itemsMagic)+sha256.Size || len(b) > maxItemsFile || string(b[:len(itemsMagic)]) != itemsMagic {
		return nil, errors.New("not a file of cluster items")
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if want := sha256.Sum256(body); !bytes.Equal(want[:], sum) {
		return nil, errors.New("checksum does not match")
	}
	return parseItems(body[len(itemsMagic):])
}

// Save replaces the file, with mode 0600. It returns when the new content and its
// name would survive a power cut.
func (f FileItems) Save(raws [][]byte) error {
	b := appendItems([]byte(itemsMagic), raws)
	sum := sha256.Sum256(b)
	if err := renameio.WriteFile(f.Path, append(b, sum[:]...), 0o600); err != nil {
		return fmt.Errorf("save cluster items %s: %w", f.Path, err)
	}
	if err := flushDir(filepath.Dir(f.Path)); err != nil {
		return fmt.Errorf("save cluster items %s: %w", f.Path, err)
	}
	return nil
}

// flushDir makes a new name in a directory durable, which renameio leaves to
// the file system.
func flushDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
