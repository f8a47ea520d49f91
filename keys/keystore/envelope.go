package keystore

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
)

// formatVersion is the version of state.json, tokens.json and the like.
const formatVersion = 1

// envelope is the outer form of the JSON files. Every later version keeps it,
// so that an older program can tell a newer file from a damaged one.
type envelope struct {
	Version int             `json:"version"`
	Sum     string          `json:"sha256"` // of "VERSION\n" and the body without white space
	Body    json.RawMessage `json:"body"`
}

func envelopeSum(version int, compact []byte) string {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "%d\n", version)
	h.Write(compact)
	return hex.EncodeToString(h.Sum(nil))
}

func seal(body any) ([]byte, error) {
	compact, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	out, err := json.MarshalIndent(envelope{formatVersion, envelopeSum(formatVersion, compact), compact}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode state: %w", err)
	}
	return append(out, '\n'), nil
}

// unseal decodes into body. Damage is ErrCorrupt; an intact file of a later
// version is ErrNewerVersion. Errors of the JSON decoder are not passed on:
// they quote their input, which may hold keys.
func unseal(b []byte, body any) error {
	var e envelope
	if err := json.Unmarshal(b, &e); err != nil {
		return ErrCorrupt
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, e.Body); err != nil || envelopeSum(e.Version, compact.Bytes()) != e.Sum {
		return ErrCorrupt
	}
	// The checksum covers the version, so a flipped version is damage, not a
	// newer file.
	if e.Version > formatVersion {
		return fmt.Errorf("version %d, this program knows up to %d: %w", e.Version, formatVersion, ErrNewerVersion)
	}
	dec := json.NewDecoder(&compact)
	dec.DisallowUnknownFields()
	if err := dec.Decode(body); err != nil {
		return ErrCorrupt
	}
	return nil
}

// load reads name, or the copy before it where name is damaged or missing;
// recovered tells that it did. A missing file without a copy is
// fs.ErrNotExist. A newer or an unsafe file is never passed over for its
// older copy: that would undo what the newer one decided.
func load[B any](d *dir, name string) (body B, recovered bool, err error) {
	body, err = loadOne[B](d, name)
	if err == nil || !errors.Is(err, ErrCorrupt) && !errors.Is(err, fs.ErrNotExist) {
		return body, false, err
	}
	prev, prevErr := loadOne[B](d, name+prevSuffix)
	switch {
	case prevErr == nil:
		return prev, true, nil
	case errors.Is(err, fs.ErrNotExist) && errors.Is(prevErr, fs.ErrNotExist):
		return body, false, err
	}
	return body, false, fmt.Errorf("%w, and the copy before it: %w", err, prevErr)
}

func loadOne[B any](d *dir, name string) (B, error) {
	var body B
	b, err := d.read(name)
	if err != nil {
		return body, err
	}
	if err := unseal(b, &body); err != nil {
		var none B
		return none, fmt.Errorf("read %s: %w", d.file(name), err)
	}
	return body, nil
}

// save writes name, which exists, and keeps the copy before it.
func (d *dir) save(name string, body any) error {
	b, err := seal(body)
	if err != nil {
		return err
	}
	defer clear(b)
	return d.replaceKeeping(name, name+prevSuffix, b)
}

// saveBoth writes name and its copy with one content: for the first write, and
// after a recovery, when the damaged file must not become the copy.
func (d *dir) saveBoth(name string, body any) error {
	b, err := seal(body)
	if err != nil {
		return err
	}
	defer clear(b)
	if err := d.replace(name+prevSuffix, b); err != nil {
		return err
	}
	return d.replace(name, b)
}
