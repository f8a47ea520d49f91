package noisenet

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// memberStream is a gossip stream as memberlist sees it: a net.Conn between
// virtual addresses. What the peer sends passes checkStream before memberlist
// reads the first byte, and ends at MaxMessage bytes. One goroutine may read
// and one may write at a time.
type memberStream struct {
	conn    *secureConn
	self    ids.NodeID
	onClose func() // called once
	once    sync.Once

	// The reader's.
	pending  []byte // decrypted, not yet delivered
	received int
	checked  bool
	dead     error

	// The writer's.
	sent int
}

var _ net.Conn = (*memberStream)(nil)

func (m *memberStream) Read(b []byte) (int, error) {
	if m.dead != nil {
		return 0, m.dead
	}
	for len(m.pending) == 0 || !m.checked {
		if err := m.fill(); err != nil {
			var timeout net.Error
			if !errors.As(err, &timeout) || !timeout.Timeout() {
				m.dead = err
			}
			return 0, err
		}
	}
	n := copy(b, m.pending)
	m.pending = m.pending[n:]
	return n, nil
}

func (m *memberStream) fill() error {
	channel, data, err := m.conn.readFrame()
	if err != nil {
		if err == io.EOF && !m.checked && len(m.pending) > 0 {
			return io.ErrUnexpectedEOF
		}
		return err
	}
	if channel != channelMemberlist {
		return fmt.Errorf("read gossip stream: frame of channel %d", channel)
	}
	return m.take(data)
}

// take adds the data of one frame, which it copies, and judges the head of the
// stream as soon as it is complete.
func (m *memberStream) take(data []byte) error {
	m.received += len(data)
	if m.received > MaxMessage {
		return fmt.Errorf("read gossip stream: %w", ErrTooLarge)
	}
	m.pending = append(m.pending, data...)
	if m.checked {
		return nil
	}
	err := checkStream(m.pending)
	if errors.Is(err, errShort) {
		return nil
	}
	m.checked = err == nil
	return err
}

func (m *memberStream) Write(b []byte) (int, error) {
	if m.sent+len(b) > MaxMessage {
		return 0, fmt.Errorf("write gossip stream of %d bytes: %w", m.sent+len(b), ErrTooLarge)
	}
	written := 0
	for written < len(b) {
		n := min(len(b)-written, maxFrameData)
		if err := m.conn.writeFrame(channelMemberlist, b[written:written+n], false); err != nil {
			return written, err
		}
		written += n
		m.sent += n
	}
	return written, nil
}

func (m *memberStream) Close() error {
	m.once.Do(func() {
		m.conn.close()
		m.onClose()
	})
	return nil
}

func (m *memberStream) LocalAddr() net.Addr  { return virtualAddr(m.self) }
func (m *memberStream) RemoteAddr() net.Addr { return virtualAddr(m.conn.peer.ID) }

func (m *memberStream) SetDeadline(t time.Time) error      { return m.conn.raw.SetDeadline(t) }
func (m *memberStream) SetReadDeadline(t time.Time) error  { return m.conn.raw.SetReadDeadline(t) }
func (m *memberStream) SetWriteDeadline(t time.Time) error { return m.conn.raw.SetWriteDeadline(t) }

// virtualAddr is the address memberlist knows a node by. It exists nowhere on
// the underlay.
func virtualAddr(id ids.NodeID) *net.UDPAddr {
	a := id.InnerAddr().As16()
	return &net.UDPAddr{IP: a[:], Port: VirtualPort}
}
