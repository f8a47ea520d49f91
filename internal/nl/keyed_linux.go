package nl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Keyed is a netlink socket for requests whose bodies or answers hold keys, to
// the kernel of one namespace, whatever thread uses it. It is used by one
// goroutine.
//
// The netlink libraries copy what passes through them and leave the copies to
// the garbage collector, which clears nothing. This socket has buffers of its
// own and clears them after each use; and it asks the kernel not to send a
// refused request back with the refusal.
type Keyed struct {
	fd   int
	seq  uint32
	what string // for people
	buf  []byte
}

// keyedPatience is how long, in seconds, the kernel may take for one answer: it
// loads modules on demand.
const keyedPatience = 60

// Keyed opens a socket of a netlink protocol, such as unix.NETLINK_GENERIC. An
// error that matches IsNotSupported says that the kernel does not have it. The
// caller closes it.
func (n *Namespace) Keyed(protocol int) (*Keyed, error) {
	k := &Keyed{
		what: fmt.Sprintf("netlink %d in %s", protocol, n.path),
		buf:  make([]byte, 64<<10), // netlink(7): no answer is longer than 32 KiB
	}
	err := n.Do(func() (err error) {
		k.fd, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
		return os.NewSyscallError("socket", err)
	})
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", k.what, err)
	}
	err = errors.Join(
		unix.Bind(k.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		unix.SetsockoptInt(k.fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1),
		unix.SetsockoptInt(k.fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
		unix.SetsockoptTimeval(k.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: keyedPatience}),
	)
	if err != nil {
		k.Close()
		return nil, fmt.Errorf("open %s: %w", k.what, err)
	}
	return k, nil
}

// Close releases the socket.
func (k *Keyed) Close() { _ = unix.Close(k.fd) }

// Do sends one request and returns the kernel's verdict. Answers are given to
// reply, which may be nil and must not keep them: they are cleared afterwards.
// The caller clears body. The error matches the errno.
func (k *Keyed) Do(typ uint16, body []byte, reply func([]byte)) error {
	if err := k.send(typ, unix.NLM_F_REQUEST|unix.NLM_F_ACK, body); err != nil {
		return err
	}
	return k.receive(reply)
}

// keyedAttempts is how often Dump begins again.
const keyedAttempts = 10

// Dump asks for all objects of a kind and gives each answer to reply, which
// must not keep it. A dump that the kernel reports as interrupted begins
// again, and reply sees nothing of it.
func (k *Keyed) Dump(typ uint16, body []byte, reply func([]byte)) error {
	var err error
	for range keyedAttempts {
		var all [][]byte
		if err = k.send(typ, unix.NLM_F_REQUEST|unix.NLM_F_DUMP, body); err != nil {
			return err
		}
		err = k.receive(func(m []byte) { all = append(all, append([]byte(nil), m...)) })
		for _, m := range all {
			if err == nil {
				reply(m)
			}
			clear(m)
		}
		if !errors.Is(err, errKeyedInterrupted) {
			return err
		}
	}
	return err
}

var errKeyedInterrupted = errors.New("the kernel's list changed while it was read")

func (k *Keyed) send(typ uint16, flags int, body []byte) error {
	k.seq++
	msg := make([]byte, unix.SizeofNlMsghdr+len(body))
	defer clear(msg)
	binary.NativeEndian.PutUint32(msg, uint32(len(msg)))
	binary.NativeEndian.PutUint16(msg[4:], typ)
	binary.NativeEndian.PutUint16(msg[6:], uint16(flags))
	binary.NativeEndian.PutUint32(msg[8:], k.seq)
	copy(msg[unix.SizeofNlMsghdr:], body)
	err := retry(func() error { return unix.Sendto(k.fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) })
	if err != nil {
		return fmt.Errorf("send to %s: %w", k.what, err)
	}
	return nil
}

// receive reads answers until the verdict.
func (k *Keyed) receive(reply func([]byte)) error {
	interrupted := false
	for {
		var n int
		err := retry(func() (err error) {
			n, _, err = unix.Recvfrom(k.fd, k.buf, 0)
			return err
		})
		if err != nil {
			return fmt.Errorf("receive from %s: %w", k.what, err)
		}
		done, err := k.take(k.buf[:n], reply, &interrupted)
		clear(k.buf[:n])
		if err == nil && done && interrupted {
			return errKeyedInterrupted
		}
		if err != nil || done {
			return err
		}
	}
}

// take goes through the messages of one datagram. It reports true at the
// verdict.
func (k *Keyed) take(datagram []byte, reply func([]byte), interrupted *bool) (bool, error) {
	messages, err := syscall.ParseNetlinkMessage(datagram)
	if err == nil && len(messages) == 0 {
		err = errors.New("no message in it")
	}
	if err != nil {
		return false, fmt.Errorf("receive from %s: %w", k.what, err)
	}
	for _, m := range messages {
		if m.Header.Seq != k.seq {
			continue // the end of a request that was given up
		}
		*interrupted = *interrupted || m.Header.Flags&unix.NLM_F_DUMP_INTR != 0
		switch m.Header.Type {
		case unix.NLMSG_DONE, unix.NLMSG_ERROR:
			return true, keyedVerdict(m.Data, m.Header.Flags)
		default:
			if reply != nil {
				reply(m.Data)
			}
		}
	}
	return false, nil
}

// keyedVerdict reads the errno of a final message, and the kernel's own words for
// it if there are any.
func keyedVerdict(data []byte, flags uint16) error {
	if len(data) < 4 {
		return errors.New("netlink: short verdict")
	}
	errno := -int32(binary.NativeEndian.Uint32(data))
	if errno == 0 {
		return nil
	}
	// struct nlmsgerr, capped: errno, header of the request, attributes.
	const capped = 4 + unix.SizeofNlMsghdr
	if flags&unix.NLM_F_ACK_TLVS != 0 && flags&unix.NLM_F_CAPPED != 0 && len(data) > capped {
		attrs, err := ParseAttrs(data[capped:])
		if err == nil {
			for _, a := range attrs {
				if a.Attr.Type == unix.NLMSGERR_ATTR_MSG {
					return fmt.Errorf("%w (%s)", syscall.Errno(errno), unix.ByteSliceToString(a.Value))
				}
			}
		}
	}
	return syscall.Errno(errno)
}
