package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Limits of the messages (PROTOCOL.md, 13.5).
const (
	maxName  = 63 // bytes of a network's name
	maxBlock = 1 + maxName + 1 + 16 + 1
	minBlock = 1 + 1 + 1 + 4 + 1
	askHead  = 32 + 8 + 2
	ansHead  = 1 + 8 + 2

	// MaxAskSize is the length in bytes of the largest request: 21,034.
	MaxAskSize = askHead + MaxAsk*maxBlock
)

// ErrMessage is wrapped by every error about bytes that are no message.
var ErrMessage = errors.New("claim message is malformed")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrMessage, fmt.Sprintf(format, args...))
}

// Encode returns the bytes of a request.
func (a Ask) Encode() []byte {
	b := append(make([]byte, 0, askHead+len(a.Blocks)*32), a.Voters[:]...)
	b = binary.BigEndian.AppendUint64(b, a.Seq)
	b = binary.BigEndian.AppendUint16(b, uint16(len(a.Blocks))) //nolint:gosec // at most MaxAsk
	for _, block := range a.Blocks {
		b = append(b, uint8(len(block.Network))) //nolint:gosec // at most maxName
		b = append(b, block.Network...)
		family := uint8(6)
		if block.Prefix.Addr().Is4() {
			family = 4
		}
		b = append(b, family)
		b = append(b, block.Prefix.Addr().AsSlice()...)
		b = append(b, uint8(block.Prefix.Bits())) //nolint:gosec // at most 128
	}
	return b
}

// ParseAsk reads a request. What parses encodes to the same bytes.
func ParseAsk(b []byte) (Ask, error) {
	if len(b) < askHead || len(b) > MaxAskSize {
		return Ask{}, malformed("request of %d bytes", len(b))
	}
	a := Ask{Voters: [32]byte(b[:32]), Seq: binary.BigEndian.Uint64(b[32:40])}
	n := int(binary.BigEndian.Uint16(b[40:42]))
	b = b[askHead:]
	if n > MaxAsk || n*minBlock > len(b) {
		return Ask{}, malformed("%d blocks, at most %d, in %d bytes", n, MaxAsk, len(b))
	}
	for i := range n {
		block, rest, err := cutBlock(b)
		if err != nil {
			return Ask{}, err
		}
		if i > 0 && a.Blocks[i-1].compare(block) >= 0 {
			return Ask{}, malformed("blocks are not ascending")
		}
		a.Blocks, b = append(a.Blocks, block), rest
	}
	if len(b) != 0 {
		return Ask{}, malformed("%d bytes too many", len(b))
	}
	return a, nil
}

// cutBlock takes a block off the front of b.
func cutBlock(b []byte) (Block, []byte, error) {
	n := 0
	if len(b) > 0 {
		n = int(b[0])
	}
	if n < 1 || n > maxName || len(b) < 1+n+1 {
		return Block{}, nil, malformed("network name of %d bytes", n)
	}
	name := string(b[1 : 1+n])
	for i := range len(name) {
		if name[i] <= ' ' || name[i] > '~' {
			return Block{}, nil, malformed("network name with byte %#x", name[i])
		}
	}
	family, b := b[1+n], b[2+n:]
	size := map[uint8]int{4: 4, 6: 16}[family]
	if size == 0 || len(b) < size+1 {
		return Block{}, nil, malformed("address family %d", family)
	}
	addr, _ := netip.AddrFromSlice(b[:size])
	p := netip.PrefixFrom(addr, int(b[size]))
	if !p.IsValid() || p != p.Masked() || addr.Is4In6() || addr.IsMulticast() {
		return Block{}, nil, malformed("block %s/%d", addr, b[size])
	}
	return Block{name, p}, b[size+1:], nil
}

// Encode returns the bytes of an answer.
func (a Answer) Encode() []byte {
	b := binary.BigEndian.AppendUint64([]byte{uint8(a.Code)}, a.Seq)
	b = binary.BigEndian.AppendUint16(b, uint16(len(a.Verdicts))) //nolint:gosec // at most MaxAsk
	for _, v := range a.Verdicts {
		b = append(b, uint8(v.Verdict))
		if v.Verdict == Refused {
			b = append(b, v.Holder[:]...)
		}
	}
	return b
}

// ParseAnswer reads an answer. What parses encodes to the same bytes.
func ParseAnswer(b []byte) (Answer, error) {
	if len(b) < ansHead {
		return Answer{}, malformed("answer of %d bytes", len(b))
	}
	a := Answer{Code: Code(b[0]), Seq: binary.BigEndian.Uint64(b[1:9])}
	n := int(binary.BigEndian.Uint16(b[9:11]))
	b = b[ansHead:]
	switch {
	case a.Code > Differs:
		return Answer{}, malformed("code %d", a.Code)
	case n > MaxAsk || n > len(b) || n > 0 && a.Code != Decided:
		return Answer{}, malformed("%d verdicts in %d bytes, code %d", n, len(b), a.Code)
	}
	for range n {
		if len(b) == 0 || Verdict(b[0]) > Full {
			return Answer{}, malformed("verdict")
		}
		v := ForBlock{Verdict: Verdict(b[0])}
		b = b[1:]
		if v.Verdict == Refused {
			if len(b) < len(v.Holder) || ids.NodeID(b[:16]).IsZero() {
				return Answer{}, malformed("refusal without a holder")
			}
			v.Holder, b = ids.NodeID(b[:16]), b[16:]
		}
		a.Verdicts = append(a.Verdicts, v)
	}
	if len(b) != 0 {
		return Answer{}, malformed("%d bytes too many", len(b))
	}
	return a, nil
}
