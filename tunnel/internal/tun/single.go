package tun

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/tunnel/internal/block"
)

const clonePath = "/dev/net/tun"

// openTUN makes a TUN link in the namespace of the calling thread. The link
// lives as long as the file.
func openTUN(name string) (int, error) {
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", clonePath, err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("make tun %s: %w", name, err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("make tun %s: %w", name, err)
	}
	return fd, nil
}

// single exchanges one packet at a time with a TUN link.
//
// It has no virtio header, so that the kernel has no way to take a merged packet. What
// we carry is VXLAN, equal-sized datagrams of one flow: wireguard-go's own TUN would merge
// them as datagrams and switch on UDP offload where the kernel has it (Linux 6.2), and VXLAN
// receivers drop merged datagrams on Linux 6.2 to 6.8.4. This is the form for those.
type single struct{ *reader }

// openSingle makes a TUN link in the namespace of the calling thread. With an alarm who reads
// waits in the kernel, until it rings.
func openSingle(name string, alarm *block.Alarm) (*single, error) {
	fd, err := openTUN(name)
	if err != nil {
		return nil, err
	}
	r, err := newReader(fd, clonePath, alarm)
	if err != nil {
		return nil, err
	}
	return &single{r}, nil
}

// Next implements packets.
func (s *single) Next(dst []byte, wait bool) (int, error) { return s.read(dst, wait) }

// Overflowed implements packets: the link's own statistics say it.
func (*single) Overflowed() uint64 { return 0 }

// Write implements packets: packet by packet, never merged.
func (s *single) Write(bufs [][]byte, offset int) (int, error) {
	var errs []error
	written := 0
	for _, b := range bufs {
		_, err := s.file.Write(b[offset:])
		switch err := gone(err); {
		case errors.Is(err, os.ErrClosed):
			return written, os.ErrClosed
		case err != nil:
			errs = append(errs, err)
		default:
			written++
		}
	}
	return written, errors.Join(errs...)
}
