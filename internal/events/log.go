package events

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"sync"
	"time"
)

// MaxFile is the size at which a file is put aside. One predecessor is kept,
// so the log takes at most twice as much: some 5,000 events of 200 bytes each.
const MaxFile = 1 << 20

const (
	current  = "events.jsonl"
	previous = "events.1.jsonl"
	fileMode = 0o600 // as everything in the data directory
)

// Log is the event log of a data directory. It may be used by several
// goroutines of one process.
type Log struct {
	dir *os.Root

	mu   sync.Mutex // guards the fields below
	file *os.File
	size int64
	last uint64 // number of the newest event
	torn bool   // the file does not end with a whole line
}

// Open opens the log in a data directory, or makes it. The caller holds the
// directory's lock.
func Open(dir string) (*Log, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open event log: %w", err)
	}
	l := &Log{dir: root}
	if err := l.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("open event log: %w", err), l.Close())
	}
	return l, nil
}

// open finds the end of the log and continues there.
func (l *Log) open() error {
	var data []byte
	for _, name := range []string{previous, current} {
		var err error
		if data, err = l.content(name); err != nil {
			return err
		}
		for _, e := range parse(data) {
			l.last = max(l.last, e.Seq)
		}
	}
	l.size = int64(len(data))
	l.torn = len(data) > 0 && data[len(data)-1] != '\n'
	return l.reopen()
}

// content returns a file of the log; nothing if there is none. More than a
// file can have is not ours and is not read.
func (l *Log) content(name string) ([]byte, error) {
	st, err := l.dir.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() || st.Size() > 2*MaxFile {
		return nil, fmt.Errorf("%s is no event log: remove it", name)
	}
	return l.dir.ReadFile(name)
}

func (l *Log) reopen() error {
	f, err := l.dir.OpenFile(current, os.O_WRONLY|os.O_APPEND|os.O_CREATE, fileMode)
	if err != nil {
		return err
	}
	l.file = f
	return nil
}

// append writes a line. What a failed write left, of this process or an
// earlier one, gets an end of its own, so that it does not spoil the line.
func (l *Log) append(line []byte) error {
	if l.torn {
		line = append([]byte("\n"), line...)
	}
	n, err := l.file.Write(line)
	l.size += int64(n)
	l.torn = err != nil
	return err
}

// Add appends an event; its number is given here. Nothing depends on the log,
// so a caller that gets an error of a full disk says so and goes on.
func (l *Log) Add(e Event) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return fmt.Errorf("add event: %w", fs.ErrClosed)
	}
	e.Seq = l.last + 1
	line, err := encode(e)
	if err != nil {
		return err
	}
	if l.size+int64(len(line)) > MaxFile {
		if err := l.rotate(); err != nil {
			return fmt.Errorf("add event: %w", err)
		}
	}
	if err := l.append(line); err != nil {
		return fmt.Errorf("add event: %w", err)
	}
	l.last = e.Seq
	return nil
}

// rotate puts the file aside and starts a new one.
func (l *Log) rotate() error {
	// A file that is gone was put aside by an attempt that failed later.
	if err := l.dir.Rename(current, previous); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	old := l.file
	if err := l.reopen(); err != nil {
		return err // the old file stays in use
	}
	l.size, l.torn = 0, false
	return old.Close()
}

// Query selects events.
type Query struct {
	Since time.Time // not older than this; zero: all
	// After selects events with a greater number; 0: all. With it a reader
	// that polls misses nothing and sees nothing twice.
	After uint64
	Kinds []string // empty: all
	// Limit is how many to return at most; 0: no limit. Of more, the oldest
	// are returned if After is set, else the newest.
	Limit int
}

// Read returns the events of a query, oldest first.
func (l *Log) Read(q Query) ([]Event, error) {
	data, err := l.all(q.After)
	if err != nil {
		return nil, fmt.Errorf("read events: %w", err)
	}
	return q.apply(parse(data)), nil
}

// all returns both files, unless nothing is newer than an event's number: the
// common case of a reader that polls.
func (l *Log) all(after uint64) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil, fs.ErrClosed
	}
	if after > 0 && after >= l.last {
		return nil, nil
	}
	var data []byte
	for _, name := range []string{previous, current} {
		part, err := l.content(name)
		if err != nil {
			return nil, err
		}
		data = append(append(data, part...), '\n')
	}
	return data, nil
}

// apply selects from all events.
func (q Query) apply(all []Event) []Event {
	out := slices.DeleteFunc(all, func(e Event) bool {
		return e.Seq <= q.After || e.Time.Before(q.Since) || len(q.Kinds) > 0 && !slices.Contains(q.Kinds, e.Kind)
	})
	switch {
	case q.Limit <= 0 || len(out) <= q.Limit:
		return out
	case q.After > 0:
		return out[:q.Limit]
	default:
		return out[len(out)-q.Limit:]
	}
}

// Close ends the log.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.dir == nil {
		return nil
	}
	err := l.dir.Close()
	if l.file != nil {
		err = errors.Join(err, l.file.Close())
	}
	l.dir, l.file = nil, nil
	return err
}
