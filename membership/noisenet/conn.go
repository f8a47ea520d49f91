package noisenet

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// writeTimeout is how long one frame of at most 16 KiB may take to leave. A
// peer that does not read for this long is gone.
const writeTimeout = 10 * time.Second

// secureConn carries frames over a TCP connection after a handshake. One
// goroutine may read and several may write; close may be called by anyone.
type secureConn struct {
	raw  net.Conn
	peer Peer
	est  *established

	br  *bufio.Reader // reader only
	rec *record       // its open by the reader, its seal under wmu

	wmu  sync.Mutex // guards wbuf and rec.seal
	wbuf []byte
}

func newSecureConn(raw net.Conn, est *established, peer Peer) (*secureConn, error) {
	rec, err := newRecord(&est.secret, est.initiator)
	if err != nil {
		return nil, err
	}
	return &secureConn{raw: raw, est: est, peer: peer, rec: rec,
		br: bufio.NewReaderSize(raw, framePrefix+maxCiphertext)}, nil
}

// readFrame returns the next frame; data is valid until the next call. A
// timeout leaves what has arrived in place, so reading may go on after it;
// every other error is final.
func (c *secureConn) readFrame() (channel uint8, data []byte, err error) {
	prefix, err := c.br.Peek(framePrefix)
	if err != nil {
		if len(prefix) > 0 && errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	n, err := frameLen(prefix)
	if err != nil {
		return 0, nil, err
	}
	frame, err := c.br.Peek(framePrefix + n)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	channel, data, err = c.rec.open(frame)
	if err != nil {
		return 0, nil, err
	}
	_, err = c.br.Discard(framePrefix + n)
	return channel, data, err
}

// writeFrame sends one frame. With extend it gives itself writeTimeout;
// otherwise the deadline that the owner set on the connection holds. After an
// error the connection is useless: part of a frame may have left.
func (c *secureConn) writeFrame(channel uint8, data []byte, extend bool) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	var err error
	if c.wbuf, err = c.rec.seal(c.wbuf[:0], channel, data); err != nil {
		return err
	}
	if extend {
		if err := c.raw.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return err
		}
	}
	if _, err = c.raw.Write(c.wbuf); err != nil {
		// The record counted this frame; nothing may follow it.
		c.rec.outDead = true
		_ = c.raw.Close()
	}
	return err
}

func (c *secureConn) close() { _ = c.raw.Close() }

// readHandshake reads one handshake message, and not one byte more than that,
// from a connection whose deadline is set.
func readHandshake(r io.Reader, least, most int) ([]byte, error) {
	var prefix [2]byte
	if _, err := io.ReadFull(r, prefix[:]); err != nil {
		return nil, err
	}
	n := int(binary.BigEndian.Uint16(prefix[:]))
	if n < least || n > most {
		return nil, fmt.Errorf("read handshake message: %d bytes, want %d..%d: %w", n, least, most, ErrHandshake)
	}
	b := make([]byte, n)
	_, err := io.ReadFull(r, b)
	if errors.Is(err, io.EOF) {
		err = io.ErrUnexpectedEOF
	}
	return b, err
}
