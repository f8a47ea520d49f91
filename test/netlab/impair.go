package netlab

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// Impairment is what a bad wire does to packets, in each direction. It needs
// FeatureNetem.
type Impairment struct {
	Loss    float64 // percent, at random
	Delay   time.Duration
	Jitter  time.Duration // more or less than Delay; packets overtake each other
	Reorder float64       // percent that are not delayed at all
}

// Impaired counts what became of packets in one direction of a host's wire.
type Impaired struct {
	Passed  uint64 // handed on
	Dropped uint64 // lost on purpose, or because a queue was full
	Queued  uint64 // still delayed
}

// Plus sums two counts.
func (i Impaired) Plus(j Impaired) Impaired {
	return Impaired{i.Passed + j.Passed, i.Dropped + j.Dropped, i.Queued + j.Queued}
}

// Taken returns how many packets came to the bad wire.
func (i Impaired) Taken() uint64 { return i.Passed + i.Dropped + i.Queued }

// Handles of the queueing disciplines on an impaired link.
const (
	impairRoot  = 1 // the classifier
	impairOther = 2 // everything else
	impairMain  = 3 // what the classifier picked
)

// impairQueue is how many packets may be delayed at once: seconds of the
// tests' traffic. The kernel's default of 1000 would lose more than asked for.
const impairQueue = 20_000

// Impair makes the host's wire bad in both directions, or worse than it was.
// Packets of a whole IPv4 length of `mark` bytes get `marked` and are counted on
// their own, all others get `other`; mark 0 marks nothing.
func (h *Host) Impair(other Impairment, mark uint16, marked Impairment) error {
	return h.bothEnds("impair", func(nlh *nl.Handle, link netlink.Link) error {
		_ = nlh.QdiscDel(rootQdisc(link)) // there may be none
		return impair(nlh, link, other, mark, marked)
	})
}

// Repair undoes Impair. What is delayed is lost.
func (h *Host) Repair() error {
	return h.bothEnds("repair", func(nlh *nl.Handle, link netlink.Link) error { return nlh.QdiscDel(rootQdisc(link)) })
}

// Impaired counts the marked packets since Impair: those that the host sent,
// and those that were sent to it.
func (h *Host) Impaired() (out, in Impaired, err error) {
	if out, err = impaired(h.ns, HostLink); err == nil {
		in, err = impaired(h.lab.sw.ns, h.port)
	}
	return out, in, err
}

func impaired(ns *nl.Namespace, name string) (n Impaired, err error) {
	err = onLink(ns, name, "read impairment of", func(nlh *nl.Handle, link netlink.Link) error {
		list, err := nlh.QdiscList(link)
		if err != nil {
			return err
		}
		for _, q := range list {
			a := q.Attrs()
			if a.Handle != netlink.MakeHandle(impairMain, 0) || a.Statistics == nil || a.Statistics.Basic == nil || a.Statistics.Queue == nil {
				continue
			}
			n = Impaired{
				Passed: uint64(a.Statistics.Basic.Packets), Dropped: uint64(a.Statistics.Queue.Drops), Queued: uint64(a.Statistics.Queue.Qlen),
			}
			return nil
		}
		return errors.New("it is not impaired")
	})
	return n, err
}

func rootQdisc(link netlink.Link) netlink.Qdisc {
	return netlink.NewPrio(netlink.QdiscAttrs{
		LinkIndex: link.Attrs().Index, Handle: netlink.MakeHandle(impairRoot, 0), Parent: netlink.HANDLE_ROOT,
	})
}

// impair builds the tree: a classifier whose first band is for everything and
// whose second is for what the filter picks.
func impair(nlh *nl.Handle, link netlink.Link, other Impairment, mark uint16, marked Impairment) error {
	root := rootQdisc(link).(*netlink.Prio)
	root.Bands, root.PriorityMap = 2, [netlink.PRIORITY_MAP_LEN]uint8{} // all to the first
	if err := nlh.QdiscAdd(root); err != nil {
		return fmt.Errorf("add classifier: %w", err)
	}
	index := link.Attrs().Index
	err := errors.Join(
		nlh.QdiscAdd(other.netem(index, impairOther, 1)),
		nlh.QdiscAdd(marked.netem(index, impairMain, 2)),
	)
	if err != nil || mark == 0 {
		return err
	}
	return nlh.FilterAdd(&netlink.U32{
		FilterAttrs: netlink.FilterAttrs{
			LinkIndex: index, Parent: netlink.MakeHandle(impairRoot, 0), Priority: 1, Protocol: unix.ETH_P_IP,
		},
		ClassId: netlink.MakeHandle(impairRoot, 2),
		// The total length is the second half of an IPv4 header's first word.
		Sel: &netlink.TcU32Sel{
			Flags: netlink.TC_U32_TERMINAL, Nkeys: 1,
			Keys: []netlink.TcU32Key{{Mask: 0xffff, Val: uint32(mark), Off: 0}},
		},
	})
}

// netem describes the impairment for the kernel.
func (i Impairment) netem(index int, handle, band uint16) netlink.Qdisc {
	return netlink.NewNetem(
		netlink.QdiscAttrs{
			LinkIndex: index, Handle: netlink.MakeHandle(handle, 0), Parent: netlink.MakeHandle(impairRoot, band),
		},
		netlink.NetemQdiscAttrs{
			Latency: uint32(i.Delay.Microseconds()), Jitter: uint32(i.Jitter.Microseconds()),
			Loss: float32(i.Loss), ReorderProb: float32(i.Reorder), Limit: impairQueue,
		})
}
