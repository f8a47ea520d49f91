package nl

import (
	"encoding/binary"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// Request is one of many, see DoMany.
type Request struct {
	Type  uint16
	Flags int // besides NLM_F_REQUEST and NLM_F_ACK
	Body  []byte
}

// manyAtOnce bounds how many verdicts wait in the socket: the kernel drops what
// its buffer cannot hold, and a verdict takes much more there than its bytes.
const manyAtOnce = 64

// DoMany sends requests, many in one system call, and returns the kernel's verdict
// for each, as Do does. The kernel takes them one after the other; one that fails
// stops none.
func (k *Keyed) DoMany(reqs []Request) []error {
	errs := make([]error, len(reqs))
	for at := 0; at < len(reqs); at += manyAtOnce {
		end := min(at+manyAtOnce, len(reqs))
		k.doSome(reqs[at:end], errs[at:end])
	}
	return errs
}

func (k *Keyed) doSome(reqs []Request, errs []error) {
	var msg []byte
	first := k.seq + 1
	for _, r := range reqs {
		k.seq++
		size := unix.SizeofNlMsghdr + len(r.Body)
		msg = binary.NativeEndian.AppendUint32(msg, uint32(size)) //nolint:gosec // a few hundred bytes
		msg = binary.NativeEndian.AppendUint16(msg, r.Type)
		msg = binary.NativeEndian.AppendUint16(msg, uint16(r.Flags|unix.NLM_F_REQUEST|unix.NLM_F_ACK)) //nolint:gosec // flags
		msg = binary.NativeEndian.AppendUint32(msg, k.seq)
		msg = binary.NativeEndian.AppendUint32(msg, 0)
		msg = append(msg, r.Body...)
		msg = append(msg, make([]byte, (4-size%4)%4)...)
	}
	defer clear(msg)
	fail := func(err error) {
		for i := range errs {
			errs[i] = err
		}
	}
	err := retry(func() error { return unix.Sendto(k.fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) })
	if err != nil {
		fail(fmt.Errorf("send to %s: %w", k.what, err))
		return
	}
	for left := len(reqs); left > 0; {
		var n int
		err := retry(func() (err error) {
			n, _, err = unix.Recvfrom(k.fd, k.buf, 0)
			return err
		})
		var messages []syscall.NetlinkMessage
		if err == nil {
			messages, err = syscall.ParseNetlinkMessage(k.buf[:n])
		}
		if err != nil {
			fail(fmt.Errorf("receive from %s: %w", k.what, err))
			return
		}
		for _, m := range messages {
			// Unsigned: what belongs to a request that was given up is far away.
			i := m.Header.Seq - first
			if m.Header.Type == unix.NLMSG_ERROR && i < uint32(len(reqs)) { //nolint:gosec // at most manyAtOnce
				errs[i] = keyedVerdict(m.Data, m.Header.Flags)
				left--
			}
		}
		clear(k.buf[:n])
	}
}
