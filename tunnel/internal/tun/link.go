package tun

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/block"
)

// Form is how packets cross a link.
type Form string

// The forms.
const (
	// Pair: a pair of veth links, up to 64 KiB at a time. It needs a kernel as FormFor finds.
	Pair Form = "pair"
	// Single: a TUN link, one packet at a time, on any kernel.
	Single Form = "single"
)

// UnmarkedType is what netlink calls a link of the form that has no alias at first
// (netlink.Link.Type): Single. A pair's link has it from the beginning.
const UnmarkedType = "tuntap"

// Options make a link.
type Options struct {
	Name string
	MTU  int // bytes of packet; it may be changed from outside later
	Form Form
	// Alias is what a pair's link says of itself (ifalias) from the beginning. The firewall's
	// owner knows tunnel devices by it, so that no other veth link passes for one.
	Alias string
	// Block lets who reads wait in the kernel, not in the runtime's poller (package block).
	Block bool
	// Changed is called when the link's MTU has changed, if it is not nil. It must not wait.
	Changed func()
}

// Link is an open link.
type Link struct {
	packets
	ns      *nl.Namespace
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
	var alarm *block.Alarm
	if o.Block {
		var err error
		if alarm, err = block.NewAlarm(); err != nil {
			return nil, errors.Join(err, ns.Close())
		}
	}
	p, err := openPackets(ns, o, alarm)
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	t := &Link{
		packets: p, ns: ns, name: o.Name, changed: o.Changed, alarm: alarm, stop: make(chan struct{}), ended: make(chan struct{}),
	}
	t.mtu.Store(int32(o.MTU))
	err = t.tune(o.MTU)
	var updates <-chan netlink.LinkUpdate
	if err == nil {
		updates, err = t.subscribe()
	}
	if err != nil {
		return nil, errors.Join(err, t.closeFiles())
	}
	go t.watch(updates)
	return t, nil
}

func openPackets(ns *nl.Namespace, o Options, alarm *block.Alarm) (p packets, err error) {
	switch o.Form {
	case Pair:
		p, err = openPair(ns, o, alarm)
	case Single:
		err = ns.Do(func() (err error) {
			p, err = openSingle(o.Name, alarm)
			return err
		})
	default:
		err = fmt.Errorf("no form %q of a link: %s or %s", o.Form, Pair, Single)
	}
	return p, err
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
		return fmt.Errorf("set queue length of %s: %w", t.name, err)
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
	return errors.Join(t.File().Close(), t.remove(), t.ns.Close())
}

// remove deletes the link if it is still there: a TUN went with its file, the namespace behind a
// pair goes when the kernel gets round to it. By its index: the name may be a successor's.
func (t *Link) remove() error {
	if t.index == 0 {
		return nil
	}
	h, err := t.ns.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	err = h.LinkDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: t.index}})
	if err != nil && !nl.IsNotExist(err) {
		return fmt.Errorf("delete link %s: %w", t.name, err)
	}
	return nil
}
