package espuser

import (
	"errors"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// reception receives from one socket, on a thread of its own; transmission sends. What net and x/sys
// have for this wants the runtime's poller, or allocates an address for each packet.
type reception struct {
	from *socket
	once func(fd uintptr) bool

	buf, control []byte
	iov          unix.Iovec
	msg          unix.Msghdr
	n            int
	err          error
}

func newReception(from *socket) *reception {
	r := &reception{from: from, buf: make([]byte, longest+1), control: make([]byte, controlRoom)}
	r.iov.Base = &r.buf[0]
	r.iov.SetLen(len(r.buf))
	r.msg.Iov, r.msg.Control = &r.iov, &r.control[0]
	r.msg.SetIovlen(1)
	r.once = r.receiveOnce
	return r
}

// next waits for the next bytes, and says into packets of which size they are to be cut, and with which
// mark they came. They are
// valid until it is called again. os.ErrClosed: there is nothing more.
func (r *reception) next() (b []byte, size int, mark ecn, err error) {
	if err := r.from.conn.Read(r.once); err != nil {
		return nil, 0, 0, err
	}
	if r.err != nil {
		return nil, 0, 0, r.err
	}
	size, mark = received(r.control[:r.msg.Controllen], r.n)
	return r.buf[:r.n], size, mark, nil
}

// receiveOnce receives, and waits if there is nothing. The socket is not closed meanwhile: who calls
// it holds it open.
func (r *reception) receiveOnce(fd uintptr) bool {
	for {
		r.msg.SetControllen(len(r.control))
		n, _, errno := unix.Syscall(unix.SYS_RECVMSG, fd, uintptr(unsafe.Pointer(&r.msg)), 0)
		switch {
		case errno == 0:
			r.n, r.err = int(n), nil
			return true
		case errors.Is(errno, unix.EINTR):
			continue
		case !errors.Is(errno, unix.EAGAIN):
			r.err = os.NewSyscallError("recvmsg", errno)
			return true
		}
		if r.err = r.from.alarm.Wait(int(fd), unix.POLLIN); r.err != nil {
			return true
		}
	}
}

// transmission sends, in one goroutine.
type transmission struct {
	once func(fd uintptr) bool

	by  *socket
	iov unix.Iovec
	msg unix.Msghdr
	err error
}

func newTransmission() *transmission {
	t := &transmission{}
	t.msg.Iov = &t.iov
	t.msg.SetIovlen(1)
	t.once = t.sendOnce
	return t
}

// send sends bytes with control messages to an address (rawAddr), by a socket. None of them is empty.
func (t *transmission) send(by *socket, b, control, to []byte) error {
	t.by = by
	t.iov.Base = &b[0]
	t.iov.SetLen(len(b))
	t.msg.Control, t.msg.Name, t.msg.Namelen = &control[0], &to[0], uint32(len(to))
	t.msg.SetControllen(len(control))
	if err := by.conn.Write(t.once); err != nil {
		return err
	}
	return t.err
}

// sendOnce sends, and waits if there is no room.
func (t *transmission) sendOnce(fd uintptr) bool {
	for {
		_, _, errno := unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&t.msg)), 0)
		switch {
		case errno == 0:
			t.err = nil
			return true
		case errors.Is(errno, unix.EINTR):
			continue
		case !errors.Is(errno, unix.EAGAIN):
			t.err = os.NewSyscallError("sendmsg", errno)
			return true
		}
		if t.err = t.by.alarm.Wait(int(fd), unix.POLLOUT); t.err != nil {
			return true
		}
	}
}
