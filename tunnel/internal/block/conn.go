package block

import (
	"errors"
	"os"
	"syscall"
)

// Conn is a file's RawConn that says os.ErrClosed once the file is closed, as the file itself does.
// The one of package os hands on the poller's own error, which is no os.ErrClosed and which nobody
// else can name: who reads until there is nothing more would not see the end.
type Conn struct{ syscall.RawConn }

// NewConn returns the Conn of a file.
func NewConn(f *os.File) (Conn, error) {
	raw, err := f.SyscallConn()
	return Conn{raw}, err
}

// Read implements syscall.RawConn.
func (c Conn) Read(f func(fd uintptr) bool) error { return closed(c.RawConn.Read(f)) }

// Write implements syscall.RawConn.
func (c Conn) Write(f func(fd uintptr) bool) error { return closed(c.RawConn.Write(f)) }

// closed names the errors of a RawConn: there are two, that a deadline has passed, and the end.
func closed(err error) error {
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return os.ErrClosed
}
