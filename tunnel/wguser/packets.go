package wguser

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// packets is how packets enter and leave a TUN link: the part of tun.Device that
// depends on what the kernel offers.
type packets interface {
	BatchSize() int
	Read(bufs [][]byte, sizes []int, offset int) (int, error)
	Write(bufs [][]byte, offset int) (int, error)
}

// openPackets makes a TUN link in the namespace of the calling thread, in the fastest
// form that the kernel has, or one packet at a time. The link lives as long as the file.
func openPackets(name string, one bool) (packets, *os.File, error) {
	if !one {
		p, file, err := openSegmented(name)
		if err == nil || !errors.Is(err, errNotSegmented) {
			return p, file, err
		}
	}
	fd, err := openTUN(name, 0)
	if err != nil {
		return nil, nil, err
	}
	// Only now may the runtime poll the file: epoll on a TUN without a link
	// reports an error once and never again.
	file := os.NewFile(uintptr(fd), clonePath)
	return single{file}, file, nil
}

// single exchanges one packet at a time with the link.
//
// It has no virtio header: with one, and without what segmented needs, wireguard-go would
// merge datagrams of one flow into one GSO packet when it writes to the TUN and
// switch on UDP offload where the kernel has it (Linux 6.2).
// What we carry is VXLAN, equal-sized datagrams of one flow, just what is
// merged; and VXLAN receivers drop merged datagrams on Linux 6.2 to
// 6.8.4, or make throughput collapse on others. Without the header the
// kernel has no way to take a merged packet, so none can arise.
type single struct{ file *os.File }

// BatchSize implements packets.
func (single) BatchSize() int { return 1 }

// Read implements packets: one packet.
func (s single) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := s.file.Read(bufs[0][offset:])
	if err != nil {
		return 0, closedIf(err)
	}
	sizes[0] = n
	return 1, nil
}

// Write implements packets: packet by packet, never merged.
func (s single) Write(bufs [][]byte, offset int) (int, error) {
	var errs []error
	written := 0
	for _, b := range bufs {
		_, err := s.file.Write(b[offset:])
		switch {
		case errors.Is(err, unix.EBADFD):
			return written, os.ErrClosed
		case err != nil:
			errs = append(errs, err)
		default:
			written++
		}
	}
	return written, errors.Join(errs...)
}

// closedIf says what wireguard-go wants to hear of a link that was deleted.
func closedIf(err error) error {
	if errors.Is(err, unix.EBADFD) {
		return os.ErrClosed
	}
	return err
}
