package netlab

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// retireAfter is when the kernel hands a block over that is not full: how long
// a reader waits at most to learn of a frame. A block is handed over with few
// frames in it, too, so a quiet link uses up a ring in blocks * retireAfter: a
// reader that gets no turn for less loses nothing. Short is bad, therefore.
const retireAfter = 40 * time.Millisecond

// ringSize is the shape of a ring. The kernel allocates all of it when it is
// opened, and never swaps it.
type ringSize struct {
	block  int // bytes, a power of two of pages; a frame and its 150 bytes of headers must fit
	blocks int
}

// sharedRing returns the size of each of n rings that are opened together.
//
// A block holds every frame there is: a GSO packet of a BIG TCP link has up to
// 512 KiB, one of all others 64 KiB and some headers, which waste a sixteenth of
// a block. 32 MiB are 32 * 40 ms = 1.3 s of a quiet link (the tests have seen
// machines that stood still for 200 ms), and 250 ms of a link with 1 Gbit/s.
// A virtual machine of 2 GiB has room for the few captures that a test there
// opens; many hosts share 256 MiB, which leaves each of 16 the half.
func sharedRing(n int) ringSize {
	return ringSize{block: 1 << 20, blocks: max(8, min(32, 256/max(n, 1)))}
}

// ring is a packet socket with a receive ring, TPACKET_V3 (Linux,
// Documentation/networking/packet_mmap.rst): the kernel copies each frame into
// a block of memory that both share, while it taps the link, and hands the block
// over when it is full or retireAfter has passed. One goroutine reads.
type ring struct {
	file *os.File
	raw  syscall.RawConn
	size ringSize
	mem  []byte
	next int // the block that is handed over next; the reader's

	mu      sync.Mutex // guards what follows
	put     uint64     // frames that the kernel has put into the ring
	refused uint64     // frames for which there was no room
}

// openRing opens a ring on a link of the calling thread's namespace, for what
// comes in only or for both directions. The caller calls close.
func openRing(index int, incoming bool, size ringSize) (*ring, error) {
	// Protocol 0 receives nothing until bind names the link: no frame of
	// another link slips in, and none before the ring is there.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	r := &ring{size: size}
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"set version of", func() error {
			return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3)
		}},
		{"direct", func() error {
			return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, btoi(incoming))
		}},
		{"make ring of", func() error { return setRing(fd, size) }},
		{"map ring of", func() (err error) {
			r.mem, err = unix.Mmap(fd, 0, size.block*size.blocks, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			return err
		}},
		{"bind", func() error {
			return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: htons(unix.ETH_P_ALL), Ifindex: index})
		}},
	} {
		if err := step.do(); err != nil {
			_ = unix.Close(fd)
			_ = r.unmap()
			return nil, fmt.Errorf("%s packet socket: %w", step.what, err)
		}
	}
	r.file = os.NewFile(uintptr(fd), "capture")
	if r.raw, err = r.file.SyscallConn(); err != nil {
		_ = r.file.Close()
		_ = r.unmap()
		return nil, fmt.Errorf("use packet socket: %w", err)
	}
	return r, nil
}

// setRing makes the ring. The kernel wants a frame size that divides the block;
// of this version it has no other meaning.
func setRing(fd int, size ringSize) error {
	return unix.SetsockoptTpacketReq3(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &unix.TpacketReq3{
		Block_size: uint32(size.block), Block_nr: uint32(size.blocks),
		Frame_size: uint32(size.block), Frame_nr: uint32(size.blocks),
		Retire_blk_tov: uint32(retireAfter.Milliseconds()),
	})
}

// read gives frames to examine, in order, until the ring is closed or fails.
// whole is false if only a frame's beginning is there. examine must not keep the
// slice: the kernel writes there again.
func (r *ring) read(examine func(frame []byte, whole bool)) {
	for r.wait() {
		block := r.mem[r.next*r.size.block:][:r.size.block]
		eachFrame(block, examine)
		atomic.StoreUint32(blockStatus(block), unix.TP_STATUS_KERNEL)
		r.next = (r.next + 1) % r.size.blocks
	}
}

// wait waits for the next block and reports whether it is there.
func (r *ring) wait() bool {
	block := r.mem[r.next*r.size.block:]
	ready := false
	err := r.raw.Read(func(fd uintptr) bool {
		// The kernel writes the status last: whoever has seen it sees the frames.
		if ready = atomic.LoadUint32(blockStatus(block))&unix.TP_STATUS_USER != 0; ready {
			return true
		}
		// Reading the error clears it. That the link went down or away is
		// reported once, and no reason to end: it may come back.
		errno, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		return err != nil || errno != 0 && unix.Errno(errno) != unix.ENETDOWN
	})
	return err == nil && ready
}

// blockHeader returns the header of a block that was handed over.
func blockHeader(block []byte) *unix.TpacketHdrV1 {
	return (*unix.TpacketHdrV1)(unsafe.Pointer(&(*unix.TpacketBlockDesc)(unsafe.Pointer(&block[0])).Hdr))
}

// blockStatus returns the word that says whose a block is.
func blockStatus(block []byte) *uint32 { return &blockHeader(block).Block_status }

// eachFrame gives the frames of a block, which may be empty, to examine.
func eachFrame(block []byte, examine func(frame []byte, whole bool)) {
	header := blockHeader(block)
	at := header.Offset_to_first_pkt
	for range header.Num_pkts {
		h := (*unix.Tpacket3Hdr)(unsafe.Pointer(&block[at]))
		examine(block[at+uint32(h.Mac):][:h.Snaplen:h.Snaplen], h.Snaplen == h.Len)
		at += h.Next_offset
	}
}

// arrived returns how many frames were put into the ring until now, and how
// many were refused. A frame counts as put before it can be read.
func (r *ring) arrived() (put, refused uint64) {
	// Reading resets the kernel's counters: one reader at a time, or another
	// sees neither what it has read nor the new sums.
	r.mu.Lock()
	defer r.mu.Unlock()
	_ = r.raw.Control(func(fd uintptr) {
		if st, err := unix.GetsockoptTpacketStatsV3(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			r.refused += uint64(st.Drops)
			r.put += uint64(st.Packets - st.Drops) // Packets counts both
		}
	})
	return r.put, r.refused
}

// detach makes the ring accept no further frame: a classic BPF program that
// returns 0 for every one. (Binding to another link would not do: it reports an
// error to the reader.)
func (r *ring) detach() {
	reject := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	_ = r.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: 1, Filter: &reject[0]})
	})
}

// close ends read. The memory stays until unmap, which the caller calls when
// read has returned; so does the socket.
func (r *ring) close() error { return r.file.Close() }

// unmap gives the memory back.
func (r *ring) unmap() error {
	if r.mem == nil {
		return nil
	}
	err := unix.Munmap(r.mem)
	r.mem = nil
	return err
}
