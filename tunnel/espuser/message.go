package espuser

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// A request to a worker and its answer are one message each: version, kind and length of
// the body (u8, u8, u32), then the body. Numbers are big endian, addresses have 16 bytes,
// IPv4 ones mapped. The worker is of the agent's version or of an older one.
const (
	protocolVersion = 1
	headLen         = 1 + 1 + 4
	// maxBody is the longest body: 20,000 peers.
	maxBody = 4 << 20
)

// kind is what a message asks for or says.
type kind uint8

const (
	kindGet    kind = 1 // nothing -> state
	kindSet    kind = 2 // port, wanted... -> verdicts
	kindAnswer kind = 128
	kindFailed kind = 129 // text, which quotes nothing of the request
)

// wanted is one peer as the worker should have it.
type wanted struct {
	inner         netip.Addr
	key           keys.KeyID
	in, out       ids.SPI // out zero: only the receiving half
	local, remote netip.AddrPort
	// Key material of the halves that the worker lacks; nil: it has them.
	inMaterial, outMaterial []byte
}

// verdict is what became of one peer.
type verdict uint8

const (
	verdictDone verdict = 0
	// verdictGone: a half is missing, and its key material was not in the request or has
	// been installed before.
	verdictGone verdict = 1
)

// peer is one peer as the worker has it.
type peer struct {
	inner         netip.Addr
	key           keys.KeyID
	in, out       ids.SPI
	local, remote netip.AddrPort
	// Of inner packets, under this key.
	rxBytes, txBytes, rxPackets, txPackets uint64
}

// Lengths of encoded parts.
const (
	addrLen   = 16
	portLen   = 2
	peerLen   = addrLen + 4 + 4 + 4 + 2*(addrLen+portLen)
	wantedLen = peerLen + 2*(1+keys.ESPKeySize)
	stateLen  = peerLen + 4*8
)

// errMessage says that a message is not one.
var errMessage = errors.New("malformed message")

// writeMessage sends one message.
func writeMessage(w io.Writer, k kind, body []byte) error {
	head := [headLen]byte{protocolVersion, byte(k)}
	binary.BigEndian.PutUint32(head[2:], uint32(len(body)))
	if _, err := w.Write(head[:]); err != nil {
		return err
	}
	_, err := w.Write(body)
	return err
}

// readMessage receives one message. The body may hold secrets, which the caller clears.
func readMessage(r io.Reader) (kind, []byte, error) {
	var head [headLen]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[2:])
	if head[0] != protocolVersion || n > maxBody {
		return 0, nil, fmt.Errorf("%w: version %d, %d bytes", errMessage, head[0], n)
	}
	body := make([]byte, n)
	_, err := io.ReadFull(r, body)
	return kind(head[1]), body, err
}

func appendAddr(b []byte, a netip.Addr) []byte {
	raw := a.As16()
	return append(b, raw[:]...)
}

func appendEnd(b []byte, e netip.AddrPort) []byte {
	return binary.BigEndian.AppendUint16(appendAddr(b, e.Addr()), e.Port())
}

func (w wanted) append(b []byte) []byte {
	b = appendAddr(b, w.inner)
	for _, n := range []uint32{uint32(w.key), uint32(w.in), uint32(w.out)} {
		b = binary.BigEndian.AppendUint32(b, n)
	}
	b = appendEnd(appendEnd(b, w.local), w.remote)
	for _, m := range [][]byte{w.inMaterial, w.outMaterial} {
		if len(m) != keys.ESPKeySize {
			b = append(b, make([]byte, 1+keys.ESPKeySize)...)
			continue
		}
		b = append(append(b, 1), m...)
	}
	return b
}

// encodeSet returns the body of a request: everything that the worker is to have. It holds key
// material in one place, which the caller clears.
func encodeSet(port uint16, peers []wanted) []byte {
	b := make([]byte, 0, portLen+len(peers)*wantedLen)
	b = binary.BigEndian.AppendUint16(b, port)
	for _, w := range peers {
		b = w.append(b)
	}
	return b
}

// reader takes a body to pieces. What is too short was refused before.
type reader []byte

func (r *reader) take(n int) []byte {
	b := (*r)[:n]
	*r = (*r)[n:]
	return b
}

func (r *reader) u16() uint16 { return binary.BigEndian.Uint16(r.take(2)) }
func (r *reader) u32() uint32 { return binary.BigEndian.Uint32(r.take(4)) }
func (r *reader) u64() uint64 { return binary.BigEndian.Uint64(r.take(8)) }

func (r *reader) addr() netip.Addr { return netip.AddrFrom16([addrLen]byte(r.take(addrLen))).Unmap() }

func (r *reader) end() netip.AddrPort {
	a := r.addr()
	return netip.AddrPortFrom(a, r.u16())
}

// material returns key material in place: it is part of the body, and cleared with it.
func (r *reader) material() []byte {
	has, m := r.take(1)[0], r.take(keys.ESPKeySize)
	if has == 0 {
		return nil
	}
	return m
}

// decodeSet is the inverse of encodeSet. Its key material is part of the body.
func decodeSet(body []byte) (port uint16, peers []wanted, err error) {
	if len(body) < portLen || (len(body)-portLen)%wantedLen != 0 {
		return 0, nil, fmt.Errorf("%w: set of %d bytes", errMessage, len(body))
	}
	r := reader(body)
	port = r.u16()
	for len(r) > 0 {
		w := wanted{inner: r.addr(), key: keys.KeyID(r.u32()), in: ids.SPI(r.u32()), out: ids.SPI(r.u32())}
		w.local, w.remote = r.end(), r.end()
		w.inMaterial, w.outMaterial = r.material(), r.material()
		if err := w.check(); err != nil {
			return 0, nil, err
		}
		peers = append(peers, w)
	}
	return port, peers, nil
}

// check refuses what no driver says.
func (w wanted) check() error {
	l, r := w.local.Addr(), w.remote.Addr()
	if !w.inner.Is6() || w.key == 0 || !w.in.Valid() || w.out != 0 && !w.out.Valid() ||
		l.Is4() != r.Is4() || r.IsUnspecified() || w.remote.Port() == 0 {
		return fmt.Errorf("%w: peer with inner address %s", errMessage, w.inner)
	}
	return nil
}

// state is what a worker has.
type state struct {
	port    uint16
	dropped counts // packets, by why
	peers   []peer
}

func (s state) encode() []byte {
	b := make([]byte, 0, portLen+1+8*len(s.dropped)+len(s.peers)*stateLen)
	b = append(binary.BigEndian.AppendUint16(b, s.port), byte(len(s.dropped)))
	for _, n := range s.dropped {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	for _, p := range s.peers {
		b = appendAddr(b, p.inner)
		for _, n := range []uint32{uint32(p.key), uint32(p.in), uint32(p.out)} {
			b = binary.BigEndian.AppendUint32(b, n)
		}
		b = appendEnd(appendEnd(b, p.local), p.remote)
		for _, n := range []uint64{p.rxBytes, p.txBytes, p.rxPackets, p.txPackets} {
			b = binary.BigEndian.AppendUint64(b, n)
		}
	}
	return b
}

func decodeState(body []byte) (state, error) {
	var s state
	if len(body) < portLen+1 {
		return s, fmt.Errorf("%w: state of %d bytes", errMessage, len(body))
	}
	r := reader(body)
	s.port = r.u16()
	counters := int(r.take(1)[0])
	if left := len(r) - 8*counters; left < 0 || left%stateLen != 0 {
		return s, fmt.Errorf("%w: state of %d bytes", errMessage, len(body))
	}
	for i := range counters {
		if n := r.u64(); i < len(s.dropped) { // a worker of another version may count more, or less
			s.dropped[i] = n
		}
	}
	for len(r) > 0 {
		p := peer{inner: r.addr(), key: keys.KeyID(r.u32()), in: ids.SPI(r.u32()), out: ids.SPI(r.u32())}
		p.local, p.remote = r.end(), r.end()
		p.rxBytes, p.txBytes, p.rxPackets, p.txPackets = r.u64(), r.u64(), r.u64(), r.u64()
		s.peers = append(s.peers, p)
	}
	return s, nil
}
