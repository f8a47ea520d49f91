package espuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/tunnel/internal/block"
)

// ends are the two UDP sockets of a worker: ESP in UDP goes out of the port that it comes in by.
type ends struct {
	port   uint16
	v4, v6 *socket
}

// socket is one UDP socket. The runtime's poller does not know it (package block).
type socket struct {
	file  *os.File
	conn  block.Conn
	alarm *block.Alarm // rings when it is closed
}

// socketBuffer is how many bytes wait in the kernel for this process, or for the link: what a
// machine that is busy for a moment does not lose.
const socketBuffer = 7 << 20

// listen opens both sockets on a port, in the calling process's namespace.
func listen(port uint16) (*ends, error) {
	e := &ends{port: port}
	var errs [2]error
	e.v4, errs[0] = newSocket(&unix.SockaddrInet4{Port: int(port)})
	e.v6, errs[1] = newSocket(&unix.SockaddrInet6{Port: int(port)})
	if err := errors.Join(errs[:]...); err != nil {
		e.close()
		return nil, fmt.Errorf("open udp port %d: %w", port, err)
	}
	return e, nil
}

func newSocket(at unix.Sockaddr) (*socket, error) {
	family, v4 := unix.AF_INET6, false
	if _, ok := at.(*unix.SockaddrInet4); ok {
		family, v4 = unix.AF_INET, true
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err = prepare(fd, v4); err == nil {
		err = os.NewSyscallError("bind", unix.Bind(fd, at))
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	s := &socket{}
	if s.file, err = block.NewFile(fd, "udp"); err != nil {
		return nil, err
	}
	if s.conn, err = block.NewConn(s.file); err == nil {
		s.alarm, err = block.NewAlarm()
	}
	if err != nil {
		return nil, errors.Join(err, s.file.Close())
	}
	return s, nil
}

func (s *socket) close() {
	s.alarm.Ring() // or it would stay open as long as somebody waits
	_ = s.file.Close()
}

// prepare sets what a socket needs before it is bound.
func prepare(fd int, v4 bool) error {
	// A path with a smaller MTU than anybody knew: let it be cut, as WireGuard's and the
	// kernel's ESP are (tunnel/ipsec/DESIGN.md, "Don't fragment"). Swallowing it
	// is what nobody would find.
	level, discover, off := unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT
	if v4 {
		level, discover, off = unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT
	}
	if err := unix.SetsockoptInt(fd, level, discover, off); err != nil {
		return fmt.Errorf("let packets be fragmented: %w", err)
	}
	if !v4 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	// Several packets in one call: since Linux 5.0; without it they come one by one.
	_ = unix.SetsockoptInt(fd, unix.IPPROTO_UDP, unix.UDP_GRO, 1)
	// What routers on the way have marked; a kernel that does not say it marks nothing.
	level, class := unix.IPPROTO_IPV6, unix.IPV6_RECVTCLASS
	if v4 {
		level, class = unix.IPPROTO_IP, unix.IP_RECVTOS
	}
	_ = unix.SetsockoptInt(fd, level, class, 1)
	// Beyond the system's limit, which needs CAP_NET_ADMIN; or as far as that allows.
	for force, plain := range map[int]int{unix.SO_RCVBUFFORCE: unix.SO_RCVBUF, unix.SO_SNDBUFFORCE: unix.SO_SNDBUF} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, socketBuffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, plain, socketBuffer)
		}
	}
	return nil
}

// of returns the socket of an address's family.
func (e *ends) of(a netip.Addr) *socket {
	if a.Is4() {
		return e.v4
	}
	return e.v6
}

func (e *ends) close() {
	for _, s := range []*socket{e.v4, e.v6} {
		if s != nil {
			s.close()
		}
	}
}

// appendControl appends a control message (cmsg(3)) to b.
func appendControl(b []byte, level, typ int32, data []byte) []byte {
	at := len(b)
	b = append(b, make([]byte, unix.CmsgSpace(len(data)))...)
	m := b[at:]
	// struct cmsghdr begins with a length of the machine's word size.
	if length := uint64(unix.CmsgLen(len(data))); unix.SizeofCmsghdr == 16 {
		binary.NativeEndian.PutUint64(m, length)
	} else {
		binary.NativeEndian.PutUint32(m, uint32(length))
	}
	typed := m[unix.SizeofCmsghdr-8:]
	binary.NativeEndian.PutUint32(typed, uint32(level))
	binary.NativeEndian.PutUint32(typed[4:], uint32(typ))
	copy(m[unix.CmsgLen(0):], data)
	return b
}

// sourceMessage is the control message that gives a packet its source address: a host may have
// several, and firewalls between the two let the one pass that the records name.
func sourceMessage(a netip.Addr) []byte {
	if a.Is4() {
		info := make([]byte, unix.SizeofInet4Pktinfo)
		copy(info[4:], a.AsSlice()) // ipi_spec_dst
		return appendControl(nil, unix.IPPROTO_IP, unix.IP_PKTINFO, info)
	}
	info := make([]byte, unix.SizeofInet6Pktinfo)
	copy(info, a.AsSlice())
	return appendControl(nil, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, info)
}

// segmentMessage appends the control message that has the kernel cut what is sent into packets
// of a size (UDP_SEGMENT, Linux 4.18).
func segmentMessage(b []byte, size int) []byte {
	var data [2]byte
	binary.NativeEndian.PutUint16(data[:], uint16(size))
	return appendControl(b, unix.IPPROTO_UDP, unix.UDP_SEGMENT, data[:])
}

// controlRoom has room for all control messages of a packet that is received or sent.
const controlRoom = 128

// received returns into packets of which size n received bytes are to be cut, and the ECN of all of them: the
// kernel joins only packets of one.
func received(control []byte, n int) (size int, mark ecn) {
	size = n
	for len(control) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			break
		}
		switch {
		case h.Level == unix.IPPROTO_UDP && h.Type == unix.UDP_GRO && len(data) >= 4:
			if segment := int(binary.NativeEndian.Uint32(data)); segment > 0 {
				size = segment
			}
		case h.Level == unix.IPPROTO_IP && h.Type == unix.IP_TOS && len(data) >= 1:
			mark = ecn(data[0] & ecnMask)
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_TCLASS && len(data) >= 4:
			mark = ecn(binary.NativeEndian.Uint32(data) & ecnMask)
		}
		control = rest
	}
	return size, mark
}

// rawAddr is an address and port as the kernel takes it (struct sockaddr_in, sockaddr_in6).
func rawAddr(a netip.AddrPort) []byte {
	var b []byte
	if a.Addr().Is4() {
		b = binary.NativeEndian.AppendUint16(b, unix.AF_INET)
		b = binary.BigEndian.AppendUint16(b, a.Port())
		b = append(b, a.Addr().AsSlice()...)
		return append(b, make([]byte, unix.SizeofSockaddrInet4-len(b))...)
	}
	b = binary.NativeEndian.AppendUint16(b, unix.AF_INET6)
	b = binary.BigEndian.AppendUint16(b, a.Port())
	b = append(b, 0, 0, 0, 0) // flow information
	b = append(b, a.Addr().AsSlice()...)
	return append(b, make([]byte, unix.SizeofSockaddrInet6-len(b))...)
}
