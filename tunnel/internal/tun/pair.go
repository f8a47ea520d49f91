package tun

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/block"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/gso"
)

// pair exchanges packets of up to 64 KiB through a packet socket on the other end of the link,
// VXLAN with a TCP or UDP packet inside that is yet to be split, and VXLAN datagrams that are
// joined, and splits and joins them itself (package gso).
//
// The other end is in a namespace of its own that lives by the socket: when the process ends, the
// kernel deletes the namespace and with it the pair, as it does with a TUN.
type pair struct {
	*reader
	ether [gso.EthernetLen]byte // of packets that arrive on the link

	// Of the one goroutine that reads.
	in    []byte
	split gso.Segmenter

	outputs sync.Pool // of *output

	counting sync.Mutex
	lost     uint64 // packets that found no room
}

const (
	// otherEnd is the name of a pair's other end.
	otherEnd = "worker"
	// otherMTU is the MTU of the other end: the largest. The link's own is what counts.
	otherMTU = 65535
	// readBuffer holds the largest packet that the kernel hands over: its GSO limit is 64 KiB
	// with all headers, unless somebody raises that of the link.
	readBuffer = gso.HeaderLen + 1<<16 + 1<<10
	// readQueue and writeQueue are how many bytes wait in the kernel for this process, and for a link
	// that takes none. A packet of 64 KiB counts as a little more, one of 1,400 bytes as 2,300 or
	// so, the least as 768.
	readQueue  = 32 << 20
	writeQueue = 4 << 20
)

// openPair makes the link in the namespace ns. With an alarm who reads waits in the kernel, until
// it rings.
func openPair(ns *nl.Namespace, o Options, alarm *block.Alarm) (*pair, error) {
	p := &pair{in: make([]byte, readBuffer)}
	err := nl.InScratch(func(scratch *nl.Namespace, h *nl.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.Index = o.Name, anyIndex()
		if err := h.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: otherEnd, PeerMTU: otherMTU}); err != nil {
			return fmt.Errorf("make link %s: %w", o.Name, err)
		}
		// The kernel says nothing of its own there, so that nothing arrives but what is written.
		quiet := []nl.Sysctl{{Key: "ipv6/conf/" + otherEnd + "/disable_ipv6", Value: "1", Optional: true}}
		if _, err := scratch.SetSysctls(quiet); err != nil {
			return err
		}
		link, err := p.prepare(h, o)
		if err != nil {
			return err
		}
		if err := p.open(h, alarm); err != nil {
			return fmt.Errorf("open the other end of %s: %w", o.Name, err)
		}
		if err := h.LinkSetNsFd(link, ns.FD()); err != nil {
			return errors.Join(fmt.Errorf("put link %s where it belongs: %w", o.Name, err), p.file.Close())
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return p, nil
}

// anyIndex returns an interface index that no link has or has had. The kernel counts them in each
// namespace, and a link keeps its own when it moves: it would have that of its predecessor, and be taken
// for it.
func anyIndex() int { return 1<<20 + rand.IntN(1<<30) } //nolint:gosec // no secret

// prepare makes the link, before anybody else sees it, one that says whose it is, asks nobody for
// addresses, and gives only what gso can split.
func (p *pair) prepare(h *nl.Handle, o Options) (netlink.Link, error) {
	l, err := h.LinkByName(o.Name)
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", o.Name, err)
	}
	if err := h.LinkSetAlias(l, o.Alias); err != nil {
		return nil, fmt.Errorf("mark link %s: %w", o.Name, err)
	}
	if err := h.LinkSetARPOff(l); err != nil {
		return nil, fmt.Errorf("switch off address resolution on %s: %w", o.Name, err)
	}
	ours := []byte{2, 0, 0, 0, 0, 1} // any but the link's: it is in no table, and nobody sends there
	copy(p.ether[copy(p.ether[:], l.Attrs().HardwareAddr):], ours)
	p.ether[12], p.ether[13] = unix.ETH_P_IPV6>>8, unix.ETH_P_IPV6&0xff
	return l, limitOffload(o.Name)
}

// open brings up the other end and opens the socket on it, in the thread's namespace.
func (p *pair) open(h *nl.Handle, alarm *block.Alarm) error {
	other, err := h.LinkByName(otherEnd)
	if err != nil {
		return err
	}
	if err := h.LinkSetUp(other); err != nil {
		return err
	}
	fd, err := packetSocket(other.Attrs().Index)
	if err != nil {
		return err
	}
	p.reader, err = newReader(fd, "packet socket", alarm)
	return err
}

// packetSocket opens a socket that takes IPv6 packets that arrive on a link of the thread's namespace,
// and sends from there.
func packetSocket(link int) (int, error) {
	const ipv6 = unix.ETH_P_IPV6>>8 | unix.ETH_P_IPV6&0xff<<8 // as it is in a packet
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	err = errors.Join(
		os.NewSyscallError("setsockopt PACKET_VNET_HDR", unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1)),
		os.NewSyscallError("setsockopt PACKET_QDISC_BYPASS", unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)),
		os.NewSyscallError("setsockopt SO_RCVBUFFORCE", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, readQueue)),
		os.NewSyscallError("setsockopt SO_SNDBUFFORCE", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, writeQueue)),
		os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: ipv6, Ifindex: link})))
	if err != nil {
		return -1, errors.Join(err, unix.Close(fd))
	}
	return fd, nil
}

// Next implements packets.
func (p *pair) Next(dst []byte, wait bool) (int, error) {
	for !p.split.More() {
		n, err := p.read(p.in, wait)
		if err != nil || n == 0 {
			return 0, err
		}
		if h, packet, err := gso.Decode(p.in[:n]); err == nil {
			// What the kernel could not have meant is dropped: there is nobody to tell.
			_ = p.split.Start(h, packet)
		}
	}
	n, err := p.split.Next(dst)
	if err != nil {
		return 0, nil //nolint:nilerr // likewise: what fits the link's MTU fits
	}
	return n, nil
}

// Overflowed implements packets.
func (p *pair) Overflowed() uint64 {
	p.counting.Lock()
	defer p.counting.Unlock()
	_ = p.conn.Control(func(fd uintptr) { // fails once the file is closed: there is nothing to count
		// The kernel counts from the last time that it was asked.
		if s, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			p.lost += uint64(s.Drops)
		}
	})
	return p.lost
}

// output is what one call of Write needs.
type output struct {
	join   gso.Coalescer
	head   [gso.HeaderLen + gso.EthernetLen]byte
	vector [][]byte
	write  func(fd uintptr) bool
	err    error
}

func newOutput() *output {
	o := &output{}
	o.write = func(fd uintptr) bool {
		_, o.err = unix.Writev(int(fd), o.vector)
		return !errors.Is(o.err, unix.EAGAIN)
	}
	return o
}

// Write implements packets: datagrams of one flow that follow each other go as one.
func (p *pair) Write(bufs [][]byte, offset int) (int, error) {
	o, ok := p.outputs.Get().(*output)
	if !ok {
		o = newOutput()
	}
	defer p.outputs.Put(o)
	copy(o.head[gso.HeaderLen:], p.ether[:])
	written := 0
	var errs []error
	for _, j := range o.join.Join(bufs, offset) {
		j.Header().Put(o.head[:])
		o.vector = append(append(o.vector[:0], o.head[:]), j.Parts...)
		err := p.conn.Write(o.write)
		if err == nil {
			err = gone(o.err)
		}
		switch {
		case errors.Is(err, os.ErrClosed):
			return written, os.ErrClosed
		case err != nil:
			errs = append(errs, os.NewSyscallError("writev", err))
		default:
			written += len(j.Parts)
		}
	}
	clear(o.vector[:cap(o.vector)])
	return written, errors.Join(errs...)
}
