package membership

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/google/renameio/v2"

	"github.com/secure-overlay/secure-overlay/membership/record"
)

const (
	cacheMagic = "so-cache-v1"
	// maxCache bounds the file: a full set of typical records is 40 MB.
	maxCache = 256 << 20
)

// FileCache keeps a record set in one file, which is replaced as a whole, so
// a crash leaves the old or the new one. Format: "so-cache-v1", number of
// entries u32, the entries (record.AppendEntry), SHA-256 of all before it. The
// checksum finds damage; trust comes from the signatures inside.
type FileCache struct{ Path string }

var _ Cache = FileCache{}

// Load returns the stored entries, none if there is no file.
func (f FileCache) Load() ([]record.Entry, error) {
	b, err := f.read()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("load record cache %s: %w", f.Path, err)
	}
	entries, err := parseCache(b)
	if err != nil {
		return nil, fmt.Errorf("load record cache %s: %w", f.Path, err)
	}
	return entries, nil
}

func (f FileCache) read() ([]byte, error) {
	file, err := os.Open(f.Path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	b, err := io.ReadAll(io.LimitReader(file, maxCache+1))
	if err == nil && len(b) > maxCache {
		err = fmt.Errorf("file is larger than %d bytes", maxCache)
	}
	return b, err
}

func parseCache(b []byte) ([]record.Entry, error) {
	if len(b) < len(cacheMagic)+4+sha256.Size || string(b[:len(cacheMagic)]) != cacheMagic {
		return nil, errors.New("not a record cache")
	}
	body, sum := b[:len(b)-sha256.Size], b[len(b)-sha256.Size:]
	if want := sha256.Sum256(body); !bytes.Equal(want[:], sum) {
		return nil, errors.New("checksum does not match")
	}
	body = body[len(cacheMagic):]
	n := binary.BigEndian.Uint32(body)
	if n > record.MaxMembers {
		return nil, fmt.Errorf("%d entries, at most %d", n, record.MaxMembers)
	}
	body = body[4:]
	var out []record.Entry
	for range n {
		e, rest, err := record.CutEntry(body)
		if err != nil {
			return nil, err
		}
		out, body = append(out, e), rest
	}
	if len(body) != 0 {
		return nil, fmt.Errorf("%d bytes after the entries", len(body))
	}
	return out, nil
}

// Save replaces the file. Its mode is 0600: who is where is nobody's business.
func (f FileCache) Save(entries []record.Entry) error {
	b := binary.BigEndian.AppendUint32([]byte(cacheMagic), uint32(len(entries)))
	for _, e := range entries {
		b = record.AppendEntry(b, e)
	}
	sum := sha256.Sum256(b)
	if len(b)+len(sum) > maxCache {
		return fmt.Errorf("save record cache %s: %d bytes, at most %d", f.Path, len(b), maxCache)
	}
	if err := renameio.WriteFile(f.Path, append(b, sum[:]...), 0o600); err != nil {
		return fmt.Errorf("save record cache %s: %w", f.Path, err)
	}
	return nil
}
