package events

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, dir string) *Log {
	t.Helper()
	l, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

func add(t *testing.T, l *Log, n int) {
	t.Helper()
	for range n {
		if err := l.Add(example(0)); err != nil {
			t.Fatal(err)
		}
	}
}

// seqs are the numbers of what a query finds.
func seqs(t *testing.T, l *Log, q Query) []uint64 {
	t.Helper()
	list, err := l.Read(q)
	if err != nil {
		t.Fatal(err)
	}
	var out []uint64
	for _, e := range list {
		out = append(out, e.Seq)
	}
	return out
}

func TestLog(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	if got := seqs(t, l, Query{}); got != nil {
		t.Errorf("new log: %v", got)
	}
	base := example(0).Time
	for i, kind := range []string{"a", "b", "a", "c", "a"} {
		e := example(99) // a number of the caller's means nothing
		e.Kind, e.Time = kind, base.Add(time.Duration(i)*time.Second)
		if err := l.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct {
		q    Query
		want []uint64
	}{
		"all":              {Query{}, []uint64{1, 2, 3, 4, 5}},
		"since":            {Query{Since: base.Add(3 * time.Second)}, []uint64{4, 5}},
		"kinds":            {Query{Kinds: []string{"a", "c"}}, []uint64{1, 3, 4, 5}},
		"newest":           {Query{Limit: 2}, []uint64{4, 5}},
		"newest of a kind": {Query{Kinds: []string{"a"}, Limit: 2}, []uint64{3, 5}},
		"after":            {Query{After: 3}, []uint64{4, 5}},
		"next":             {Query{After: 1, Limit: 2}, []uint64{2, 3}},
		"after the last":   {Query{After: 5}, nil},
		"far after":        {Query{After: 500}, nil},
	} {
		if d := cmp.Diff(tc.want, seqs(t, l, tc.q)); d != "" {
			t.Errorf("%s: %s", name, d)
		}
	}
	if err := l.Add(Event{}); err == nil {
		t.Error("an event without a kind was added")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := l.Read(Query{}); err == nil || l.Add(example(0)) == nil {
		t.Error("a closed log works")
	}
	st, err := os.Stat(filepath.Join(dir, current))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	l = open(t, dir)
	add(t, l, 1)
	if d := cmp.Diff([]uint64{1, 2, 3, 4, 5, 6}, seqs(t, l, Query{})); d != "" {
		t.Errorf("opened again: %s", d)
	}
}

// Wherever a crash cuts the file: what was whole stays, what comes later is
// read, and no number is used twice.
func TestCutAnywhere(t *testing.T) {
	src := t.TempDir()
	l := open(t, src)
	add(t, l, 3)
	whole, err := os.ReadFile(filepath.Join(src, current))
	if err != nil {
		t.Fatal(err)
	}
	for cut := range len(whole) + 1 {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, current), whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		l := open(t, dir)
		// A line is complete without its end, too.
		kept := bytes.Count(whole[:cut], []byte("}"))
		add(t, l, 1)
		var want []uint64
		for i := range kept + 1 {
			want = append(want, uint64(i+1))
		}
		if d := cmp.Diff(want, seqs(t, l, Query{})); d != "" {
			t.Fatalf("cut at %d: %s", cut, d)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = open(t, dir)
		add(t, l, 1)
		if d := cmp.Diff(append(want, uint64(kept+2)), seqs(t, l, Query{})); d != "" {
			t.Fatalf("cut at %d, opened again: %s", cut, d)
		}
		_ = l.Close()
	}
}

// The log stays below its bound, and keeps the newest.
func TestRotation(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	e := example(0)
	e.Text = strings.Repeat("x", maxText)
	const n = 5000
	for range n {
		if err := l.Add(e); err != nil {
			t.Fatal(err)
		}
	}
	total := int64(0)
	for _, name := range []string{current, previous} {
		st, err := os.Stat(filepath.Join(dir, name))
		if err != nil || st.Size() > MaxFile {
			t.Fatalf("%s: %v, %v", name, st, err)
		}
		total += st.Size()
	}
	if total < MaxFile {
		t.Errorf("only %d bytes are left of %d events", total, n)
	}
	got := seqs(t, l, Query{})
	for i := range got {
		if got[i] != n-uint64(len(got))+uint64(i)+1 {
			t.Fatalf("event %d has number %d, of %d", i, got[i], len(got))
		}
	}
	if got := seqs(t, l, Query{After: 1, Limit: 1}); len(got) != 1 || got[0] < 2 {
		t.Errorf("after one that is gone: %v", got)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	// Nothing but the predecessor is left: the numbers go on.
	if err := os.Remove(filepath.Join(dir, current)); err != nil {
		t.Fatal(err)
	}
	last := parse(mustRead(t, filepath.Join(dir, previous)))
	l = open(t, dir)
	add(t, l, 1)
	if got := seqs(t, l, Query{Limit: 1}); got[0] != last[len(last)-1].Seq+1 {
		t.Errorf("after the loss of a file the next number is %d", got[0])
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A disk that fills up costs events while it is full, and none after that.
func TestWriteFails(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	add(t, l, 1)
	good := l.file
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	l.file = full
	if err := l.Add(example(0)); err == nil {
		t.Error("a full disk is no error")
	}
	_ = full.Close()
	// As if a part of the line had come through.
	if _, err := good.WriteString(`{"v":1,"seq":2,"ti`); err != nil {
		t.Fatal(err)
	}
	l.file = good
	add(t, l, 1)
	if d := cmp.Diff([]uint64{1, 2}, seqs(t, l, Query{})); d != "" {
		t.Error(d)
	}
}

func TestForeignFiles(t *testing.T) {
	for name, make := range map[string]func(path string) error{
		"folder":  func(p string) error { return os.Mkdir(p, 0o700) },
		"symlink": func(p string) error { return os.Symlink("/dev/zero", p) },
		"huge":    func(p string) error { return os.WriteFile(p, bytes.Repeat([]byte("x"), 2*MaxFile+1), 0o600) },
	} {
		dir := t.TempDir()
		if err := make(filepath.Join(dir, current)); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(dir); err == nil || !strings.Contains(err.Error(), "is no event log") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("a missing directory was opened")
	}
}

func TestConcurrentUse(t *testing.T) {
	l := open(t, t.TempDir())
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	for range 4 {
		wg.Go(func() {
			for range 50 {
				if err := l.Add(example(0)); err != nil {
					errs <- err
					return
				}
			}
		})
		wg.Go(func() {
			after := uint64(0)
			for range 50 {
				list, err := l.Read(Query{After: after})
				if err != nil {
					errs <- err
					return
				}
				for i, e := range list {
					if e.Seq != after+uint64(i)+1 {
						errs <- fmt.Errorf("number %d follows %d", e.Seq, after+uint64(i))
						return
					}
				}
				after += uint64(len(list))
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	if got := len(seqs(t, l, Query{})); got != 200 {
		t.Errorf("%d events, want 200", got)
	}
}
