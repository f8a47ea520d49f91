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
