package netlab

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// Roughness says what a rough wire does to packets of UDP and ESP: the share of each, from 0 to 1, of those that pass
// in either direction. Other packets pass as they are.
type Roughness struct {
	Drop   float64
	Double float64 // sent twice
	Flip   float64 // one bit of the payload changed, checksums right all the same
	Resize float64 // the payload cut or made longer, all lengths right
	Hold   float64 // sent after up to Reach others
	Replay float64 // sent again after up to 8 times Reach others
	Reach  int     // packets
	Seed   uint64
}

// RoughCounts counts what a rough wire did, in both directions.
type RoughCounts struct {
	Passed, Dropped, Doubled, Flipped, Resized, Held, Replayed uint64
	Refused                                                    uint64 // the next link did not take it
}

// RoughWire is a host's wire with a process in it that handles packets one by one. It needs neither netem nor
// any other part of the kernel, and does what netem cannot: it replays, and what it changes has right lengths
// and checksums.
type RoughWire struct {
	ends [2]*os.File // towards the host, towards the switch
	wg   sync.WaitGroup
	stop sync.Once

	mu     sync.Mutex // guards counts
	counts RoughCounts
}

// roughIdle is how long a wire waits for a next packet before it sends those that it holds.
const roughIdle = 5 * time.Millisecond

// Rough makes the host's wire a rough one. The caller closes it before the lab.
func (h *Host) Rough(r Roughness) (*RoughWire, error) {
	w := &RoughWire{}
	if err := h.roughen(w); err != nil {
		return nil, errors.Join(fmt.Errorf("make wire of %s rough: %w", h.name, err), w.Close())
	}
	for i := range w.ends {
		r.Seed++
		m := newMangler(r)
		w.wg.Go(func() { w.carry(w.ends[i], w.ends[1-i], m) })
	}
	return w, nil
}

// roughen takes the host's port off the switch and puts another in its place, both open at one end.
func (h *Host) roughen(w *RoughWire) error {
	hh, err := h.ns.Handle()
	if err != nil {
		return err
	}
	defer hh.Close()
	sw, err := h.lab.sw.ns.Handle()
	if err != nil {
		return err
	}
	defer sw.Close()
	port, err := sw.LinkByName(h.port)
	if err != nil {
		return err
	}
	br, err := sw.LinkByName(bridgeName)
	if err != nil {
		return err
	}
	inner, outer := h.port+"i", h.port+"o"
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = outer, port.Attrs().MTU, br.Attrs().Index
	err = errors.Join(
		sw.LinkSetNoMaster(port),
		sw.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: inner, PeerMTU: uint32(attrs.MTU)}), //nolint:gosec // an MTU
	)
	if err != nil {
		return err
	}
	// Both links that send into the wire cut what is larger than their MTU themselves.
	if err := errors.Join(unjoined(hh, HostLink), unjoined(sw, outer), linkUp(sw, inner), linkUp(sw, outer)); err != nil {
		return err
	}
	return h.lab.sw.ns.Do(func() error {
		for i, name := range []string{h.port, inner} {
			index, err := linkIndex(name)
			if err != nil {
				return err
			}
			fd, err := vnetSocket(index)
			if err != nil {
				return err
			}
			w.ends[i] = os.NewFile(uintptr(fd), "wire "+name)
		}
		return nil
	})
}

// unjoined makes a link send each packet by itself.
func unjoined(h *nl.Handle, name string) error {
	l, err := h.LinkByName(name)
	if err != nil {
		return err
	}
	return h.LinkSetGSOMaxSegs(l, 1)
}

// carry takes packets from one end to the other until the wire is closed.
func (w *RoughWire) carry(from, to *os.File, m *mangler) {
	buf := make([]byte, vnetHeader+frameMax)
	for {
		if err := from.SetReadDeadline(time.Now().Add(roughIdle)); err != nil {
			return
		}
		n, err := from.Read(buf)
		var out [][]byte
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			out = m.all()
		case err != nil || n <= vnetHeader:
			if errors.Is(err, os.ErrClosed) || errors.Is(err, unix.ENETDOWN) {
				return
			}
			continue // a packet that has no virtio header
		default:
			out = m.pass(buf[:n])
		}
		refused := uint64(0)
		for _, raw := range out {
			if _, err := to.Write(raw); err != nil {
				refused++
			}
		}
		w.count(m.take(), refused)
	}
}

func (w *RoughWire) count(c RoughCounts, refused uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts.Passed += c.Passed
	w.counts.Dropped += c.Dropped
	w.counts.Doubled += c.Doubled
	w.counts.Flipped += c.Flipped
	w.counts.Resized += c.Resized
	w.counts.Held += c.Held
	w.counts.Replayed += c.Replayed
	w.counts.Refused += refused
}

// Counts returns what the wire has done so far.
func (w *RoughWire) Counts() RoughCounts {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.counts
}

// Close cuts the wire.
func (w *RoughWire) Close() error {
	var errs []error
	w.stop.Do(func() {
		for _, f := range w.ends {
			if f != nil {
				errs = append(errs, f.Close())
			}
		}
		w.wg.Wait()
	})
	return errors.Join(errs...)
}
