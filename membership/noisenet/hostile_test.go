package noisenet

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// hostile is an authenticated peer that does not keep the rules.
type hostile struct {
	*secureConn
}

func newHostile(t *testing.T, victim *running, n *testNode) *hostile {
	t.Helper()
	raw := rawDial(t, victim.addr())
	c := &hostile{must(newSecureConn(raw, must(initiate(raw, n.party(), victim.node.id)), Peer{ID: victim.node.id}))}
	c.frame(t, controlFrame{kind: controlHello})
	if channel, data, err := c.readFrame(); err != nil || isHello(channel, data) != nil {
		t.Fatalf("no HELLO: %v", err)
	}
	return c
}

func (c *hostile) frame(t *testing.T, f controlFrame) {
	t.Helper()
	c.bytes(t, f.encode(nil))
}

func (c *hostile) bytes(t *testing.T, b []byte) {
	t.Helper()
	// The victim may have closed already; that is what the tests want.
	_ = c.writeFrame(channelControl, b, true)
}

// closed waits for the end of the stream.
func (c *hostile) closed(t *testing.T) {
	t.Helper()
	_ = c.raw.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		_, _, err := c.readFrame()
		var timeout net.Error
		if errors.As(err, &timeout) && timeout.Timeout() {
			t.Fatal("the stream is still open")
		}
		if err != nil {
			return
		}
	}
}

func TestHostileControl(t *testing.T) {
	c := newTestCluster(1)
	block := make(chan struct{})
	victim := start(t, c.node(10), func(cfg *Config) {
		cfg.limits.bucketRate, cfg.limits.bucketBurst = 1000, 1000
		cfg.Handler = func(ctx context.Context, _ Peer, _ []byte) ([]byte, error) {
			select {
			case <-block:
			case <-ctx.Done():
			}
			return nil, nil
		}
	})
	defer close(block)
	req := func(id uint32, last bool, data string) controlFrame {
		return controlFrame{kind: controlRequest, id: id, last: last, data: []byte(data)}
	}
	for name, frames := range map[string][]controlFrame{
		"second HELLO":         {{kind: controlHello}},
		"answer to nothing":    {{kind: controlResponse, id: 1, last: true}},
		"OPENED to nothing":    {{kind: controlOpened, id: 1, index: 5}},
		"CONFIRM of nothing":   {{kind: controlConfirm, id: 1}},
		"repeated request":     {req(1, true, "a"), req(1, true, "a")},
		"falling number":       {req(5, true, "a"), req(4, true, "a")},
		"interleaved requests": {req(1, false, "a"), req(2, true, "b")},
		"endless empty frames": {req(1, false, "")},
		"repeated OPEN":        {{kind: controlOpen, id: 1, index: 5}, {kind: controlOpen, id: 1, index: 6}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHostile(t, victim, c.node(20))
			for _, f := range frames {
				h.frame(t, f)
			}
			h.closed(t)
		})
	}
	t.Run("unknown kind", func(t *testing.T) {
		h := newHostile(t, victim, c.node(20))
		h.bytes(t, []byte{99, 0, 0, 0, 1})
		h.closed(t)
	})
	t.Run("OPEN flood", func(t *testing.T) {
		h := newHostile(t, victim, c.node(20))
		for i := range uint32(maxOpens + 1) {
			h.frame(t, controlFrame{kind: controlOpen, id: i + 1, index: i + 1})
		}
		h.closed(t)
		victim.sessMu.Lock()
		n := len(victim.sess.byLocal)
		victim.sessMu.Unlock()
		if n > sessionsPerPeer {
			t.Errorf("%d sessions", n)
		}
	})
	t.Run("request flood", func(t *testing.T) {
		h := newHostile(t, victim, c.node(20))
		for i := range uint32(maxRunning + 1) {
			h.frame(t, req(i+1, true, "x"))
		}
		h.closed(t)
	})
	t.Run("endless request", func(t *testing.T) {
		h := newHostile(t, victim, c.node(20))
		chunk := make([]byte, maxChunk)
		for range MaxMessage/maxChunk + 2 {
			h.frame(t, controlFrame{kind: controlRequest, id: 1, data: chunk})
		}
		h.closed(t)
	})
	eventually(t, "no stream is left", func() bool {
		victim.mu.Lock()
		defer victim.mu.Unlock()
		return len(victim.conns) == 0 && victim.peers[c.node(20).id].accepted == 0
	})
}

// TestStreamsPerPeer: a member cannot hold more than its share of streams.
func TestStreamsPerPeer(t *testing.T) {
	c := newTestCluster(1)
	victim := start(t, c.node(10), func(cfg *Config) {
		cfg.limits.bucketRate, cfg.limits.bucketBurst = 1000, 1000
		cfg.limits.streamsPerPeer = 3
	})
	for range 3 {
		newHostile(t, victim, c.node(20))
	}
	late := rawDial(t, victim.addr())
	if _, err := initiate(late, c.node(20).party(), victim.node.id); err != nil {
		t.Fatal(err)
	}
	expectClosed(t, late, 10*time.Second)
	// Another member is not concerned.
	newHostile(t, victim, c.node(30))
}

type pingMessage struct {
	SeqNo      uint32
	Node       string
	SourceAddr []byte
	SourcePort uint16
	SourceNode string
}

// TestNoReflection: security.md T13. A member sends a ping whose source is a
// third party; memberlist would answer there.
func TestNoReflection(t *testing.T) {
	c := newTestCluster(1)
	a, b := start(t, c.node(10), nil), start(t, c.node(20), nil)
	a.dir.set(b.node.id, b.addr())
	b.dir.set(a.node.id, a.addr())
	gossip(t, b)
	victim, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.MustParseAddrPort("127.0.0.1:0")))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = victim.Close() }()
	at := victim.LocalAddr().(*net.UDPAddr)
	ping := func(m pingMessage) {
		t.Helper()
		m.Node = b.node.id.String()
		var buf bytes.Buffer
		buf.WriteByte(mlPing)
		if err := codec.NewEncoder(&buf, &codec.MsgpackHandle{}).Encode(m); err != nil {
			t.Fatal(err)
		}
		if _, err := a.WriteToAddress(buf.Bytes(), address(b.node)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"", "victim", a.node.id.String(), c.node(30).id.String()} {
		ping(pingMessage{SeqNo: 1, SourceAddr: at.IP, SourcePort: uint16(at.Port), SourceNode: name})
	}
	// The positive control: with the true source the answer comes, and it
	// comes after the others would have gone out.
	inner := a.node.id.InnerAddr().As16()
	ping(pingMessage{SeqNo: 2, SourceAddr: inner[:], SourcePort: VirtualPort, SourceNode: a.node.id.String()})
	select {
	case p := <-a.PacketCh():
		if p.Buf[0] != mlAck && p.Buf[0] != mlCompound {
			t.Errorf("answer of type %d", p.Buf[0])
		}
	case <-time.After(15 * time.Second):
		t.Fatal("the true source got no answer")
	}
	_ = victim.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if n, _, err := victim.ReadFrom(make([]byte, 100)); err == nil {
		t.Errorf("the victim received %d bytes", n)
	}
}
