package keystore

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A node that leaves its cluster goes through three states on disk:
//
//	member      no file left
//	telling     left says since when: no member any more, but the keys are still
//	            there, because it takes them to tell the others
//	ending      left says so, too: what remains to do is on this host only, and
//	            what remains of the keys is to be removed
//
// and then there is nothing, as on a node that never joined. Each step is one
// atomic write, and none leads back.

// leftName is the file that says that the node has left. It is written before
// anybody hears of it, and removed last.
const leftName = "left"

const leftTag = "so-left:"

// Words in the file, after the time in Unix seconds.
const (
	telling = "telling"
	ending  = "ending"
)

// ErrLeft: the node has left its cluster, and its data directory is only there
// to be emptied.
var ErrLeft = errors.New("this node has left its cluster")

func leftError(path string) error {
	return fmt.Errorf("%s: finish with secure-overlay leave: %w", path, ErrLeft)
}

// departure is the content of the file; zero for a member.
type departure struct {
	at     time.Time // to the second
	ending bool
}

func (d departure) encode() []byte {
	word := telling
	if d.ending {
		word = ending
	}
	return []byte(leftTag + strconv.FormatInt(d.at.Unix(), 10) + " " + word + "\n")
}

func parseDeparture(b []byte) (departure, error) {
	text := strings.TrimSuffix(strings.TrimPrefix(string(b), leftTag), "\n")
	seconds, word, _ := strings.Cut(text, " ")
	n, err := strconv.ParseInt(seconds, 10, 64)
	d := departure{at: time.Unix(n, 0).UTC(), ending: word == ending}
	// One content has one spelling, and no time is the zero one.
	if err != nil || n < 0 || string(d.encode()) != string(b) {
		return departure{}, fmt.Errorf("want %s, seconds, and %s or %s: %w", leftTag, telling, ending, ErrCorrupt)
	}
	return d, nil
}

// readDeparture returns what d says about leaving: zero if nothing.
func readDeparture(d *dir) (departure, error) {
	b, err := d.read(leftName)
	if errors.Is(err, fs.ErrNotExist) {
		return departure{}, nil
	}
	if err != nil {
		return departure{}, err
	}
	left, err := parseDeparture(b)
	if err != nil {
		// Not taken for a member: it wanted to be none.
		return departure{}, fmt.Errorf("read %s: %w", d.file(leftName), err)
	}
	return left, nil
}

// stayed returns an error if the node of d has left, wholly or not.
func stayed(d *dir) error {
	left, err := readDeparture(d)
	if err == nil && !left.at.IsZero() {
		err = leftError(d.path)
	}
	return err
}

// Departed returns when this node left its cluster; zero for a member.
func (s *Store) Departed() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left.at
}

// Depart notes, for good, that this node leaves its cluster, and returns since
// when: the first call decides. When it returns without error, no crash makes
// the node a member again. It must do so before the others are told.
func (s *Store) Depart(at time.Time) (time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return time.Time{}, ErrClosed
	}
	if !s.left.at.IsZero() {
		return s.left.at, nil
	}
	left := departure{at: time.Unix(max(at.Unix(), 0), 0).UTC()}
	if err := s.dir.replace(leftName, left.encode()); err != nil {
		return time.Time{}, fmt.Errorf("leave cluster: %w", err)
	}
	s.left = left
	return left.at, nil
}

// EndDeparture notes that the others have been told, as far as they can be:
// Open fails from now on with ErrLeft, and Wipe remains to be called.
func (s *Store) EndDeparture() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return ErrClosed
	case s.left.at.IsZero():
		return errors.New("leave cluster: the node is a member")
	}
	left := s.left
	left.ending = true
	if err := s.dir.replace(leftName, left.encode()); err != nil {
		return fmt.Errorf("leave cluster: %w", err)
	}
	s.left = left
	return nil
}

// Wipe removes everything of this node's membership from the data directory,
// and the given files of others in it, then closes the Store. EndDeparture comes
// before. What it leaves: the lock, files of others, and a root key, which is the
// cluster's. After a crash or an error the package's Wipe goes on.
func (s *Store) Wipe(others ...string) error {
	if s.issuer != nil {
		s.issuer.mu.Lock()
		defer s.issuer.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return ErrClosed
	case !s.left.ending:
		return errors.New("wipe data directory: the node has not left")
	}
	// Closed first: nothing must write into the directory from here on.
	s.wipeSecrets()
	if s.issuer != nil {
		s.issuer.wipe()
	}
	return errors.Join(wipe(s.dir, others), s.dir.close())
}

// Wipe does the same without a Store, for a node whose agent does not run: one
// that has left, or with force a member. ErrNotInitialised if there is nothing to
// wipe; ErrLeft if the node has left, but may not have told anybody, and force is
// not set.
func Wipe(path string, force bool, others ...string) error {
	d, err := openDir(path, false)
	if errors.Is(err, fs.ErrNotExist) {
		return notInitialised(path)
	}
	if err != nil {
		return err
	}
	return errors.Join(wipeOpen(d, force, others), d.close())
}

func wipeOpen(d *dir, force bool, others []string) error {
	left, err := readDeparture(d)
	switch {
	case err != nil && !force:
		return err
	case left.ending:
		return wipe(d, others)
	case !d.exists(leftName) && !d.exists(nodeCertName):
		return notInitialised(d.path)
	case !force && left.at.IsZero():
		return fmt.Errorf("%s is the data directory of a cluster member: %w", d.path, ErrExists)
	case !force:
		return leftError(d.path)
	}
	if left.at.IsZero() {
		left.at = time.Now()
	}
	left.ending = true
	if err := d.replace(leftName, left.encode()); err != nil {
		return fmt.Errorf("leave cluster: %w", err)
	}
	return wipe(d, others)
}

// secretNames are the files with secrets in them; they go first.
func secretNames() []string {
	return []string{
		nodeKeyName, noiseKeyName, accessKeyName, formerName, formerName + prevSuffix,
		issuerKeyName, issuerNewName, tokensName, tokensName + prevSuffix,
	}
}

// otherNames are the other files of a member, without leftName.
func otherNames() []string {
	return []string{
		nodeCertName, issuerCertName, stateName, stateName + prevSuffix, itemsName, itemsName + prevSuffix, logName,
		timeName, timeName + prevSuffix, promisesName,
	}
}

// wipe empties a directory whose leftName says ending. That file goes last, when
// the disk has forgotten all others: a crash anywhere before leaves a directory
// that only wipe has to do with.
func wipe(d *dir, others []string) error {
	for _, name := range secretNames() {
		if err := d.overwrite(name); err != nil {
			return fmt.Errorf("wipe %s: %w", d.file(name), err)
		}
	}
	for _, name := range slices.Concat(secretNames(), otherNames(), others, []string{leftName}) {
		if err := d.remove(name); err != nil {
			return err
		}
	}
	return nil
}

// overwrite puts zeros in place of a file's content, as far as the file system
// writes in place. No promise: a copy-on-write file system, a snapshot or the
// drive itself may keep the old blocks.
func (d *dir) overwrite(name string) (err error) {
	info, err := d.root.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !info.Mode().IsRegular() {
		return err
	}
	if err := d.at(name, "overwrite"); err != nil {
		return err
	}
	f, err := d.root.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	zeros := make([]byte, min(info.Size(), maxFile))
	if _, err := f.Write(zeros); err != nil {
		return err
	}
	return f.Sync()
}

// Remains lists what is left of a membership in a data directory, others
// included; nothing if the node left or never joined.
func Remains(path string, others ...string) ([]string, error) {
	root, err := os.OpenRoot(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look into data directory: %w", err)
	}
	defer func() { _ = root.Close() }()
	d := &dir{path: path, root: root}
	names := append(append(secretNames(), otherNames()...), others...)
	return present(d, append(names, leftName)), nil
}

// RootKeyIn returns the path of the root key that Init has put into a data
// directory, if it is still there; else "".
func RootKeyIn(path string) string {
	d, err := os.OpenRoot(path)
	if err != nil {
		return ""
	}
	defer func() { _ = d.Close() }()
	if _, err := d.Lstat(rootKeyName); err != nil {
		return ""
	}
	return (&dir{path: path}).file(rootKeyName)
}
