package tun

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/safchain/ethtool"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/gso"
)

// TestPairComesWhole: it is we who split, or nothing above is shown. What we do not split the
// kernel splits before.
func TestPairComesWhole(t *testing.T) {
	l := newTUNLab(t)
	l.via("pair")
	next := func() int {
		l.t.Helper()
		for {
			n, err := l.pair.read(l.pair.in, true)
			if err != nil {
				t.Fatal(err)
			}
			if _, p, err := gso.Decode(l.pair.in[:n]); err == nil && len(p) > 70 && bytes.HasPrefix(p[56:], labMACs) {
				return len(p)
			}
		}
	}
	if err := l.pair.file.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	frame := superframe(false, false, 0x10, 30_000, 1210)
	l.send(frame)
	if n := next(); n < 30_000 {
		t.Errorf("a packet has %d bytes, not all", n)
	}
	frame[1] |= unix.VIRTIO_NET_HDR_GSO_ECN
	l.send(frame)
	if n := next(); n > 1400 {
		t.Errorf("a packet of TCP with CWR has %d bytes: it came unsplit", n)
	}
}

// TestPairOffload: the link of a pair takes nothing unsplit but what gso splits.
func TestPairOffload(t *testing.T) {
	l := newTUNLab(t)
	err := l.ns.Do(func() error {
		e, err := ethtool.NewEthtool()
		if err != nil {
			return err
		}
		defer e.Close()
		f, err := e.Features("pair")
		if err != nil {
			return err
		}
		for _, want := range []string{"tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-udp-segmentation", "tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation", "tx-checksum-ip-generic"} {
			if !f[want] {
				t.Errorf("%s is off", want)
			}
			delete(f, want)
		}
		delete(f, "tx-generic-segmentation")
		for name, on := range f {
			if on && (strings.HasSuffix(name, "-segmentation") || strings.HasPrefix(name, "tx-checksum")) {
				t.Errorf("%s is on", name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestPairOverflows: what finds no room to wait for the process is counted.
func TestPairOverflows(t *testing.T) {
	l := newTUNLab(t)
	l.via("pair")
	frame := superframe(false, false, 0x10, 60_000, 1210)
	l.send(frame)
	if n := l.pair.Overflowed(); n != 0 {
		t.Errorf("%d packets found no room, of one", n)
	}
	sent := 0
	for range 2 * readQueue / 60_000 {
		l.send(frame)
		sent++
	}
	n := l.pair.Overflowed()
	if n == 0 || n > uint64(sent) {
		t.Errorf("%d packets of %d found no room", n, sent)
	}
	if again := l.pair.Overflowed(); again != n {
		t.Errorf("asked again: %d packets, not %d", again, n)
	}
}

// await waits until something is so.
func await(t *testing.T, so func() bool) {
	t.Helper()
	tick, end := time.NewTicker(5*time.Millisecond), time.After(10*time.Second)
	defer tick.Stop()
	for !so() {
		select {
		case <-end:
			t.Fatal("not so after 10 s")
		case <-tick.C:
		}
	}
}

// TestPairGoes: the link goes with the process's socket, and who reads learns that it is gone.
func TestPairGoes(t *testing.T) {
	l := newTUNLab(t)
	index := l.links["pair"].Attrs().Index
	if err := l.pair.file.Close(); err != nil {
		t.Fatal(err)
	}
	await(t, func() bool {
		_, err := l.h.LinkByIndex(index)
		if err != nil && !nl.IsNotExist(err) {
			t.Fatal(err)
		}
		return err != nil
	})
	p, err := openPair(l.ns, Options{Name: "pair", Alias: "test"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = p.file.Close() }()
	link, err := l.h.LinkByName("pair")
	if err != nil {
		t.Fatal(err)
	}
	if link.Attrs().Alias != "test" || link.Attrs().Index == index {
		t.Errorf("its alias is %q, its index %d, that of its predecessor %d", link.Attrs().Alias, link.Attrs().Index, index)
	}
	if err := l.h.LinkDel(link); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 1<<16)
	if _, err := p.Next(b, true); !errors.Is(err, os.ErrClosed) {
		t.Errorf("of a link that is gone: %v", err)
	}
	if _, err := p.Write([][]byte{sample()}, 0); !errors.Is(err, os.ErrClosed) {
		t.Errorf("to a link that is gone: %v", err)
	}
}
