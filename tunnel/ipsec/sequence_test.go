package ipsec_test

import (
	"bytes"
	"encoding/binary"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"
	rtnl "github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// TestSequenceBeyond32Bits sends over the point where a sequence number of 32
// bits ends, which without extended numbers stops an association for good.
func TestSequenceBeyond32Bits(t *testing.T) {
	w := newWorld(t, 2)
	w.join(1)
	const start = 1<<32 - 256
	there, back := w.nodes[0].key(w.nodes[1], 1).ESP, w.nodes[1].key(w.nodes[0], 1).ESP
	for _, sa := range []struct {
		n    *node
		dst  []byte
		spi  ids.SPI
		sent bool
	}{
		{w.nodes[0], there.Remote.AsSlice(), there.Out, true}, {w.nodes[1], back.Local.AsSlice(), back.In, false},
		{w.nodes[1], back.Remote.AsSlice(), back.Out, true}, {w.nodes[0], there.Local.AsSlice(), there.In, false},
	} {
		ok(t, setSequence(sa.n.env.Host, sa.dst, sa.spi, start, sa.sent))
	}
	stats := []map[string]int{w.nodes[0].xfrmStat(t), w.nodes[1].xfrmStat(t)}
	a, b := w.flow(0, 1, 1000, 100), w.flow(1, 0, 1000, 100)
	ok(t, a.WaitReceived(w.limit(), 800))
	ok(t, b.WaitReceived(w.limit(), 800))
	for _, r := range []netlab.FlowResult{w.finish(a), w.finish(b)} {
		t.Logf("%d of %d packets arrived", r.Received, r.Sent)
	}
	for i, n := range w.nodes {
		if bad := changed(stats[i], n.xfrmStat(t)); len(bad) != 0 {
			t.Errorf("node %d: errors %v", i, bad)
		}
	}
	if low, high := sequence(t, w.nodes[0], there.Remote.AsSlice(), there.Out); high != 1 || low < 500 {
		t.Errorf("after it the sequence number is %d * 2^32 + %d", high, low)
	}
}

// setSequence gives an association with its window a last sequence number: as
// sent, or as received.
func setSequence(ns *nl.Namespace, dst []byte, spi ids.SPI, last uint64, sent bool) error {
	replay := make([]byte, 24+1024/8)
	put := func(word int, v uint64) { binary.NativeEndian.PutUint32(replay[word*4:], uint32(v)) }
	put(0, 1024/32)
	put(5, 1024)
	if sent {
		put(1, last)
		put(3, last>>32)
	} else {
		put(2, last)
		put(4, last>>32)
	}
	req := rtnl.NewNetlinkRequest(rtnl.XFRM_MSG_NEWAE, unix.NLM_F_ACK|unix.NLM_F_REPLACE)
	req.AddRawData(eventID(dst, spi))
	req.AddRawData(rtnl.NewRtAttr(rtnl.XFRMA_REPLAY_ESN_VAL, replay).Serialize())
	return ns.Do(func() error {
		_, err := req.Execute(unix.NETLINK_XFRM, 0)
		return err
	})
}

// sequence reads the last number sent on an association.
func sequence(t *testing.T, n *node, dst []byte, spi ids.SPI) (low, high uint32) {
	t.Helper()
	x := must(n.env.Host.Keyed(unix.NETLINK_XFRM))(t)
	defer x.Close()
	ok(t, x.Do(rtnl.XFRM_MSG_GETAE, eventID(dst, spi), func(m []byte) {
		for _, a := range must(rtnl.ParseRouteAttr(m[48:]))(t) {
			if a.Attr.Type == rtnl.XFRMA_REPLAY_ESN_VAL {
				low, high = binary.NativeEndian.Uint32(a.Value[4:]), binary.NativeEndian.Uint32(a.Value[12:])
			}
		}
	}))
	return low, high
}

// eventID makes a struct xfrm_aevent_id of an IPv4 association.
func eventID(dst []byte, spi ids.SPI) []byte {
	b := make([]byte, 48)
	copy(b, dst)
	binary.BigEndian.PutUint32(b[16:], uint32(spi))
	binary.NativeEndian.PutUint16(b[20:], unix.AF_INET)
	b[22] = unix.IPPROTO_ESP
	return b
}

// TestReplay records what goes over the wire and sends it again, in order and
// backwards.
func TestReplay(t *testing.T) {
	w := newWorld(t, 2)
	w.join(1)
	var mu sync.Mutex
	var recorded [][]byte
	capture := must(netlab.OpenCapture(w.lab.Switch().NS(), w.nodes[1].host.Port(), func(frame []byte) bool {
		esp := len(frame) > 34 && frame[23] == unix.IPPROTO_ESP && bytes.Equal(frame[30:34], w.nodes[1].host.V4().AsSlice())
		if esp {
			mu.Lock()
			recorded = append(recorded, bytes.Clone(frame))
			mu.Unlock()
		}
		return esp
	}))(t)
	f := w.flow(0, 1, 1000, 100)
	ok(t, f.WaitReceived(w.limit(), 1200)) // more than the window holds
	w.finish(f)
	frames := capture.Stop()
	if frames.Dropped != 0 || len(recorded) < 1200 {
		t.Fatalf("recorded %d frames, capture %+v", len(recorded), frames)
	}
	stats := w.nodes[1].xfrmStat(t)
	before, taken := refusals(t, w.nodes[1]), w.peer(1, 0, 1).RxBytes
	in := must(netlab.OpenInjector(w.lab.Switch().NS()))(t)
	defer func() { _ = in.Close() }()
	inject := func(frame []byte) {
		ok(t, in.Frame(w.nodes[1].host.Port(), frame))
	}
	for _, frame := range recorded {
		inject(frame)
	}
	const backwards = 300
	for i := range backwards {
		inject(recorded[len(recorded)-1-i])
	}
	again := len(recorded) + backwards
	var got refused
	w.waitFor("the replays to be noticed", func() bool {
		got = refusals(t, w.nodes[1])
		return got.seen+got.forged-before.seen-before.forged >= again
	})
	// What is older than the window could only be of the next 2^32 numbers,
	// and as such its tag is wrong.
	if got.seen == before.seen || got.forged == before.forged {
		t.Errorf("refused as seen before and as forged: %+v", got)
	}
	bad := changed(stats, w.nodes[1].xfrmStat(t))
	if len(bad) != 2 || bad["XfrmInStateSeqError"] != got.seen || bad["XfrmInStateProtoError"] != got.forged {
		t.Errorf("%d frames sent again, errors %v", again, bad)
	}
	if now := w.peer(1, 0, 1).RxBytes; now != taken {
		t.Errorf("%d bytes were accepted", now-taken)
	}
	// The association has taken no harm.
	f = w.flow(0, 1, 1000, 100)
	ok(t, f.WaitReceived(w.limit(), 50))
	w.finish(f)
	t.Logf("%d recorded packets sent again: 0 accepted, %d within the window, %d older", again, got.seen, got.forged)
}

// refused are packets that associations have refused.
type refused struct {
	seen   int // number seen before, or too old
	forged int // wrong tag
}

// refusals adds up the counters of a node's associations.
func refusals(t *testing.T, n *node) (out refused) {
	t.Helper()
	k := must(kernel(n.env.Host))(t)
	defer func() { _ = k.Close() }()
	for _, s := range must(k.XfrmStateList(netlink.FAMILY_ALL))(t) {
		out.seen += int(s.Statistics.Replay) + int(s.Statistics.ReplayWindow)
		out.forged += int(s.Statistics.Failed)
	}
	return out
}
