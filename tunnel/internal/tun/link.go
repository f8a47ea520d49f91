package tun

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/block"
)

const clonePath = "/dev/net/tun"

// openTUN makes a TUN link in the namespace of the calling thread. The link
// lives as long as the file. flags are added to those of any such link.
func openTUN(name string, flags uint16) (int, error) {
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", clonePath, err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("make tun %s: %w", name, err)
	}
	ifr.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_TUN_EXCL | flags)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, ifr); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("make tun %s: %w", name, err)
	}
	return fd, nil
}

// Options make a link.
type Options struct {
	Name string
	MTU  int // bytes of packet; it may be changed from outside later
	// Single makes packets cross one at a time, as on a kernel that cannot do more.
	Single bool
	// Block lets who reads wait in the kernel, not in the runtime's poller (package block).
	Block bool
	// Changed is called when the link's MTU has changed, if it is not nil. It must not wait.
	Changed func()
}

// Link is an open TUN link.
type Link struct {
	packets
	ns      *nl.Namespace
	file    *os.File
	name    string
	index   int
	mtu     atomic.Int32
	changed func()
	alarm   *block.Alarm // nil: not Options.Block

	stop   chan struct{} // closed by Close; ends watch
	ended  chan struct{} // closed by watch
	closed sync.Once
	err    error // of Close, written once inside closed
}

// queueLength is how many packets wait in the kernel for this process. What
// does not fit is dropped, so it bounds how long the process may be without a
// processor: the default of 500 is over in a quarter of a second at 2,000
// packets/s, which a busy machine takes now and then.
const queueLength = 2048

// Open makes the link in the namespace and watches its MTU. It keeps ns open and closes
// it in the end.
func Open(ns *nl.Namespace, o Options) (*Link, error) {
	var p packets
	var file *os.File
	var alarm *block.Alarm
	err := ns.Do(func() (err error) {
		if o.Block {
			if alarm, err = block.NewAlarm(); err != nil {
				return err
			}
		}
		p, file, err = openPackets(o.Name, o.Single, alarm)
		return err
	})
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	t := &Link{
		packets: p, ns: ns, file: file, name: o.Name, changed: o.Changed, alarm: alarm, stop: make(chan struct{}), ended: make(chan struct{}),
	}
	t.mtu.Store(int32(o.MTU))
	err = t.tune(o.MTU)
	var updates <-chan netlink.LinkUpdate
	if err == nil {
		updates, err = t.subscribe()
	}
	if err != nil {
		return nil, errors.Join(err, t.closeFiles(), ns.Close())
	}
	go t.watch(updates)
	return t, nil
}

func (t *Link) tune(mtu int) error {
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
func (t *Link) subscribe() (<-chan netlink.LinkUpdate, error) {
	updates := make(chan netlink.LinkUpdate)
	fd := netns.NsHandle(t.ns.FD())
	err := netlink.LinkSubscribeWithOptions(updates, t.stop, netlink.LinkSubscribeOptions{Namespace: &fd, ListExisting: true})
	if err != nil {
		return nil, fmt.Errorf("watch link %s: %w", t.name, err)
	}
	return updates, nil
}

// watch passes on changes of the MTU until Close.
func (t *Link) watch(updates <-chan netlink.LinkUpdate) {
	defer close(t.ended)
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

func (t *Link) update(u netlink.LinkUpdate) {
	if u.Link == nil || u.Link.Attrs().Index != t.index {
		return
	}
	mtu := int32(u.Link.Attrs().MTU)
	if mtu == 0 || t.mtu.Swap(mtu) == mtu {
		return
	}
	if t.changed != nil {
		t.changed()
	}
}

// File is what the link lives by.
func (t *Link) File() *os.File { return t.file }

// Name is the link's name.
func (t *Link) Name() string { return t.name }

// MTU is the link's present MTU in bytes.
func (t *Link) MTU() int { return int(t.mtu.Load()) }

// Close ends the link, and returns when nothing is called any more.
func (t *Link) Close() error {
	t.closed.Do(func() {
		close(t.stop)
		<-t.ended
		t.err = t.closeFiles()
	})
	return t.err
}

func (t *Link) closeFiles() error {
	if t.alarm != nil {
		t.alarm.Ring() // or the file would stay open as long as somebody waits
	}
	return t.file.Close()
}
