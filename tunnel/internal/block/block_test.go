package block

import (
	"errors"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWait: there is something to read, then the alarm rings, for who waits and for who comes later.
func TestWait(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = r.Close(), w.Close() }()
	a, err := NewAlarm()
	if err != nil {
		t.Fatal(err)
	}
	fd := int(r.Fd())
	if _, err := w.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := a.Wait(fd, unix.POLLIN); err != nil {
		t.Fatalf("with something to read: %v", err)
	}
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { ended <- a.Wait(fd, unix.POLLIN) }()
	select {
	case err := <-ended:
		t.Fatalf("with nothing to read: %v", err)
	case <-time.After(20 * time.Millisecond):
	}
	a.Ring()
	for range 2 {
		if err := <-ended; !errors.Is(err, os.ErrClosed) {
			t.Fatalf("when the alarm rings: %v", err)
		}
		go func() { ended <- a.Wait(fd, unix.POLLIN) }()
	}
	<-ended
}

// TestConnTellsTheEnd: a file that was closed before somebody comes to read or write is closed for
// them, as one that is closed meanwhile; a deadline is no end.
func TestConnTellsTheEnd(t *testing.T) {
	for name, open := range map[string]func(fd int) (*os.File, error){
		"no poller": func(fd int) (*os.File, error) { return NewFile(fd, "pipe") },
		"poller": func(fd int) (*os.File, error) {
			err := unix.SetNonblock(fd, true)
			return os.NewFile(uintptr(fd), "pipe"), err
		},
	} {
		t.Run(name, func(t *testing.T) {
			var fds [2]int
			if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
				t.Fatal(err)
			}
			defer func() { _ = unix.Close(fds[1]) }()
			f, err := open(fds[0])
			if err != nil {
				t.Fatal(err)
			}
			c, err := NewConn(f)
			if err != nil {
				t.Fatal(err)
			}
			once := func(uintptr) bool { return true }
			if err := errors.Join(c.Read(once), c.Write(once)); err != nil {
				t.Errorf("open: %v", err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
			for what, err := range map[string]error{"read": c.Read(once), "write": c.Write(once)} {
				if !errors.Is(err, os.ErrClosed) {
					t.Errorf("%s: %v, want %v", what, err, os.ErrClosed)
				}
			}
		})
	}
	if err := closed(os.ErrDeadlineExceeded); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a deadline: %v", err)
	}
}
