package rotate

import (
	"encoding/binary"
	"fmt"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

const (
	messageDomain = "so-pair-v1"
	messageHead   = len(messageDomain) + 4*8 + 4 + 1
	epochSize     = 4*4 + 1
	// MaxMessage is the length of the longest encoded Message in bytes.
	MaxMessage = messageHead + MaxEpochs*epochSize

	flagProved = 1
)

// Encode returns the one encoding of msg (PROTOCOL.md section 13.6), or nil
// if no decoder would accept it.
func (msg Message) Encode() []byte {
	if msg.check() != nil {
		return nil
	}
	b := make([]byte, 0, messageHead+len(msg.Epochs)*epochSize)
	b = append(b, messageDomain...)
	for _, v := range []uint64{msg.Boot, msg.Seq, msg.AckBoot, msg.AckSeq} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(msg.Tx))
	b = append(b, uint8(len(msg.Epochs)))
	for _, e := range msg.Epochs {
		for _, v := range []uint32{uint32(e.Epoch), e.Mine, e.Yours, uint32(e.Key)} {
			b = binary.BigEndian.AppendUint32(b, v)
		}
		var flags uint8
		if e.Proved {
			flags |= flagProved
		}
		b = append(b, flags)
	}
	return b
}

// ParseMessage reads an encoded Message. The error wraps keys.ErrMalformed and
// names the field.
func ParseMessage(b []byte) (Message, error) {
	if len(b) < messageHead || string(b[:len(messageDomain)]) != messageDomain {
		return Message{}, malformed("domain or length")
	}
	r := b[len(messageDomain):]
	u64 := func() (v uint64) { v, r = binary.BigEndian.Uint64(r), r[8:]; return v }
	u32 := func() (v uint32) { v, r = binary.BigEndian.Uint32(r), r[4:]; return v }
	msg := Message{Boot: u64(), Seq: u64(), AckBoot: u64(), AckSeq: u64(), Tx: ids.Epoch(u32())}
	n := int(r[0])
	r = r[1:]
	if n > MaxEpochs || len(r) != n*epochSize {
		return Message{}, malformed("epoch count")
	}
	for range n {
		e := EpochState{Epoch: ids.Epoch(u32()), Mine: u32(), Yours: u32(), Key: keys.KeyID(u32())}
		if r[0]&^flagProved != 0 {
			return Message{}, malformed("flags")
		}
		e.Proved = r[0]&flagProved != 0
		r = r[1:]
		msg.Epochs = append(msg.Epochs, e)
	}
	if err := msg.check(); err != nil {
		return Message{}, err
	}
	return msg, nil
}

// check returns an error unless msg has an encoding.
func (msg Message) check() error {
	switch {
	case msg.Boot == 0:
		return malformed("boot")
	case msg.Seq == 0:
		return malformed("sequence")
	case (msg.AckBoot == 0) != (msg.AckSeq == 0):
		return malformed("acknowledgement")
	case len(msg.Epochs) > MaxEpochs:
		return malformed("epoch count")
	}
	last := ids.Epoch(0)
	for _, e := range msg.Epochs {
		switch {
		case e.Epoch <= last:
			return malformed("epoch")
		case e.Mine == 0:
			return malformed("instance")
		case e.Key == 0:
			return malformed("key")
		}
		last = e.Epoch
	}
	return nil
}

func malformed(field string) error {
	return fmt.Errorf("parse pair message: %s: %w", field, keys.ErrMalformed)
}
