package noisenet

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Kinds of control frame, the byte after the channel.
const (
	controlHello    = 1 // first frame of each side: the handshake is complete
	controlRequest  = 2
	controlResponse = 3
	controlFailure  = 4 // instead of a response; the data is a text
	controlOpen     = 5 // asks for a datagram session; carries an index
	controlOpened   = 6 // its answer; carries the answerer's index
	controlConfirm  = 7 // the opener has the keys
	controlAgree    = 8 // on streams of channelAgree only, as the next one
	controlAgreed   = 9 // its answer
)

const (
	controlHead = 5                              // kind u8, id u32
	maxChunk    = maxFrameData - controlHead - 1 // after the last flag
	maxFailure  = 1024                           // bytes of an error text
	maxInFlight = 8                              // unanswered requests per direction and stream
	maxRunning  = 2 * maxInFlight                // a peer with more at work broke the rule
	maxOpens    = 4                              // unanswered OPENs per stream
	maxAgree    = 16 << 10                       // bytes of an AGREE, and of an AGREED
)

var errControl = errors.New("control frame is malformed")

// controlFrame is one frame of a control stream: kind u8, id u32, then by kind
//
//	HELLO, CONFIRM                nothing
//	OPEN, OPENED                  index u32, not zero
//	REQUEST, RESPONSE, FAILURE    last u8 (0 or 1), data
//	AGREE, AGREED                 last u8 (0 or 1), data
//
// The frames of one message follow each other; only OPEN, OPENED and CONFIRM
// may come between. id numbers the sender's REQUESTs, and separately its OPENs,
// counting from 1 and always growing; RESPONSE, FAILURE, OPENED and CONFIRM
// repeat the number they belong to; HELLO has 0.
type controlFrame struct {
	kind  uint8
	id    uint32
	index uint32
	last  bool
	data  []byte
}

func (f controlFrame) encode(dst []byte) []byte {
	dst = append(dst, f.kind)
	dst = binary.BigEndian.AppendUint32(dst, f.id)
	switch f.kind {
	case controlOpen, controlOpened:
		dst = binary.BigEndian.AppendUint32(dst, f.index)
	case controlRequest, controlResponse, controlFailure, controlAgree, controlAgreed:
		last := byte(0)
		if f.last {
			last = 1
		}
		dst = append(append(dst, last), f.data...)
	}
	return dst
}

// parseControl is canonical. data aliases b.
func parseControl(b []byte) (controlFrame, error) {
	if len(b) < controlHead {
		return controlFrame{}, errControl
	}
	f := controlFrame{kind: b[0], id: binary.BigEndian.Uint32(b[1:])}
	rest := b[controlHead:]
	if (f.id == 0) != (f.kind == controlHello) {
		return controlFrame{}, errControl
	}
	switch f.kind {
	case controlHello, controlConfirm:
		if len(rest) != 0 {
			return controlFrame{}, errControl
		}
	case controlOpen, controlOpened:
		if len(rest) != 4 {
			return controlFrame{}, errControl
		}
		if f.index = binary.BigEndian.Uint32(rest); f.index == 0 {
			return controlFrame{}, errControl
		}
	case controlRequest, controlResponse, controlFailure, controlAgree, controlAgreed:
		if len(rest) < 1 || rest[0] > 1 {
			return controlFrame{}, errControl
		}
		f.last, f.data = rest[0] == 1, rest[1:]
	default:
		return controlFrame{}, errControl
	}
	return f, nil
}

// assembler joins the frames of one message. An error is final: the stream
// must be closed.
type assembler struct {
	kind uint8
	id   uint32
	data []byte
	open bool
}

// add takes a frame of a message and returns the whole message after its last
// one.
func (a *assembler) add(f controlFrame) (message []byte, complete bool, err error) {
	if a.open && (f.kind != a.kind || f.id != a.id) {
		return nil, false, fmt.Errorf("assemble message %d: frame of message %d in between: %w", a.id, f.id, errControl)
	}
	limit := MaxMessage
	switch f.kind {
	case controlFailure:
		limit = maxFailure
	case controlAgree, controlAgreed:
		limit = maxAgree
	}
	// An empty frame that is not the last one would let a peer keep a message
	// open for ever at no cost.
	if len(a.data)+len(f.data) > limit || (len(f.data) == 0 && !f.last) {
		return nil, false, fmt.Errorf("assemble message %d: %w", f.id, errControl)
	}
	a.kind, a.id, a.open = f.kind, f.id, !f.last
	a.data = append(a.data, f.data...)
	if !f.last {
		return nil, false, nil
	}
	message, a.data = a.data, nil
	return message, true, nil
}
