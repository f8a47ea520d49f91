package wguser

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

const clonePath = "/dev/net/tun"

// openTUN makes a TUN link in the namespace of the calling thread. The link
// lives as long as the file.
func openTUN(name string) (*os.File, error) {
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", clonePath, err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make tun %s: %w", name, err)
	}
	// IFF_VNET_HDR must not be here. With the virtio header wireguard-go
	// merges datagrams of one flow into one GSO packet when it writes to the
	// TUN and switches on UDP offload where the kernel has it (Linux 6.2).
	// What we carry is VXLAN, equal-sized datagrams of one flow, just what is
	// merged; and VXLAN receivers drop merged datagrams on Linux 6.2 to
	// 6.8.4, or make throughput collapse on others. Without the header the
	// kernel has no way to take a merged packet, so none can arise.
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_TUN_EXCL)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("make tun %s: %w", name, err)
	}
	// Only now may the runtime poll the file: epoll on a TUN without a link
	// reports an error once and never again.
	return os.NewFile(uintptr(fd), clonePath), nil
}

// tunLink is the TUN as wireguard-go sees it. It differs from wireguard-go's
// own in three points: one packet at a time and no header; it never asks for
// the MTU by name from whatever namespace a thread happens to be in; it
// reports no up and down events, so the UDP sockets are open from start to
// end and a port that is taken shows at once, to the one who asked for it.
type tunLink struct {
	ns     *nl.Namespace
	file   *os.File
	name   string
	index  int
	mtu    atomic.Int32
	events chan tun.Event

	stop   chan struct{} // closed by Close; ends watch
	closed sync.Once
	err    error // of Close, written once inside closed
}

// queueLength is how many packets wait in the kernel for this process. What
// does not fit is dropped, so it bounds how long the process may be without a
// processor: the default of 500 is over in a quarter of a second at 2,000
// packets/s, which a busy machine takes now and then.
const queueLength = 2048

// newTunLink makes the link in the namespace and watches its MTU. It keeps ns
// open and closes it in the end.
func newTunLink(ns *nl.Namespace, name string, mtu int) (*tunLink, error) {
	var file *os.File
	err := ns.Do(func() (err error) {
		file, err = openTUN(name)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	t := &tunLink{ns: ns, file: file, name: name, events: make(chan tun.Event, 1), stop: make(chan struct{})}
	t.mtu.Store(int32(mtu))
	err = t.tune(mtu)
	var updates <-chan netlink.LinkUpdate
	if err == nil {
		updates, err = t.subscribe()
	}
	if err != nil {
		return nil, errors.Join(err, file.Close(), ns.Close())
	}
	go t.watch(updates)
	return t, nil
}

func (t *tunLink) tune(mtu int) error {
	h, err := t.ns.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	l, err := h.LinkByName(t.name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", t.name, err)
	}
	t.index = l.Attrs().Index
	if err := h.LinkSetTxQLen(l, queueLength); err != nil {
		return fmt.Errorf("set queue length of tun %s: %w", t.name, err)
	}
	if err := h.LinkSetMTU(l, mtu); err != nil {
		return fmt.Errorf("set mtu %d on %s: %w", mtu, t.name, err)
	}
	return nil
}

// subscribe asks for all links as they are and for every change.
func (t *tunLink) subscribe() (<-chan netlink.LinkUpdate, error) {
	updates := make(chan netlink.LinkUpdate)
	fd := netns.NsHandle(t.ns.FD())
	err := netlink.LinkSubscribeWithOptions(updates, t.stop, netlink.LinkSubscribeOptions{Namespace: &fd, ListExisting: true})
	if err != nil {
		return nil, fmt.Errorf("watch link %s: %w", t.name, err)
	}
	return updates, nil
}

// watch passes on changes of the MTU until Close. wireguard-go pads packets
// up to the MTU it was told last, so a stale one would make the outer packet
// too long. The events channel is closed here, by its only sender.
func (t *tunLink) watch(updates <-chan netlink.LinkUpdate) {
	defer close(t.events)
	defer func() { _ = t.ns.Close() }()
	for {
		select {
		case <-t.stop:
			return
		case u, ok := <-updates:
			if ok {
				t.update(u)
				continue
			}
			// The kernel had more to say than the socket could hold. Ask anew;
			// if that fails, live with the MTU as it is.
			var err error
			if updates, err = t.subscribe(); err != nil {
				<-t.stop
				return
			}
		}
	}
}

func (t *tunLink) update(u netlink.LinkUpdate) {
	if u.Link == nil || u.Link.Attrs().Index != t.index {
		return
	}
	mtu := int32(u.Link.Attrs().MTU)
	if mtu == 0 || t.mtu.Swap(mtu) == mtu {
		return
	}
	select {
	case t.events <- tun.EventMTUUpdate:
	default: // one is waiting; the reader asks for the value anyway
	}
}

// File implements tun.Device.
func (t *tunLink) File() *os.File { return t.file }

// Name implements tun.Device.
func (t *tunLink) Name() (string, error) { return t.name, nil }

// MTU implements tun.Device.
func (t *tunLink) MTU() (int, error) { return int(t.mtu.Load()), nil }

// Events implements tun.Device.
func (t *tunLink) Events() <-chan tun.Event { return t.events }

// BatchSize implements tun.Device.
func (t *tunLink) BatchSize() int { return 1 }

// Read implements tun.Device: one packet.
func (t *tunLink) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := t.file.Read(bufs[0][offset:])
	if errors.Is(err, unix.EBADFD) { // the link was deleted
		err = os.ErrClosed
	}
	if err != nil {
		return 0, err
	}
	sizes[0] = n
	return 1, nil
}

// Write implements tun.Device: packet by packet, never merged.
func (t *tunLink) Write(bufs [][]byte, offset int) (int, error) {
	var errs []error
	written := 0
	for _, b := range bufs {
		_, err := t.file.Write(b[offset:])
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

// Close implements tun.Device.
func (t *tunLink) Close() error {
	t.closed.Do(func() {
		close(t.stop)
		t.err = t.file.Close()
	})
	return t.err
}
