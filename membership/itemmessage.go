package membership

import (
	"encoding/binary"
	"fmt"

	"github.com/secure-overlay/secure-overlay/membership/internal/wire"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// Kinds of the control requests about cluster items.
const (
	kindItems = 0x05 // heads: tell me in what we differ
	kindGive  = 0x08 // items that you lack
)

// The largest answer fits one control message.
const _ = uint(noisenet.MaxMessage - (2 + 32 + 2 + item.MaxItems*(2+item.MaxKey) + 2 + item.MaxItems*(2+item.MaxSize)))

// itemMessage is the user message that carries an item. Its first byte is
// another one than a hint's, so that nodes that know only hints ignore it.
func itemMessage(raw []byte) []byte { return append([]byte{messageItem}, raw...) }

const messageItem = 2

// parseItemMessage returns the item in a user message, which aliases b.
func parseItemMessage(b []byte) (raw []byte, ok bool) { return parseMessage(b, messageItem) }

func parseMessage(b []byte, form byte) (raw []byte, ok bool) {
	if len(b) < 2 || b[0] != form || len(b)-1 > maxItemGossip {
		return nil, false
	}
	return b[1:], true
}

// itemsRequest asks for a comparison of all items.
type itemsRequest struct {
	Digest [32]byte
	Heads  []item.Head // ascending
}

func (m itemsRequest) encode() []byte {
	b := append([]byte{kindItems, version}, m.Digest[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.Heads)))
	for _, h := range m.Heads {
		b = item.AppendHead(b, h)
	}
	return b
}

func parseItemsRequest(b []byte) (m itemsRequest, err error) {
	if len(b) < 2+32+2 {
		return m, errMessage
	}
	m.Digest = [32]byte(b[2:34])
	n, b := int(binary.BigEndian.Uint16(b[34:])), b[36:]
	if n > item.MaxItems {
		return m, errMessage
	}
	for i := range n {
		var h item.Head
		if h, b, err = item.CutHead(b); err != nil {
			return m, fmt.Errorf("%w: %w", errMessage, err)
		}
		if i > 0 && h.Slot.Compare(m.Heads[i-1].Slot) <= 0 {
			return m, fmt.Errorf("%w: heads are not ascending", errMessage)
		}
		m.Heads = append(m.Heads, h)
	}
	if len(b) != 0 {
		return m, errMessage
	}
	return m, nil
}

// itemsAnswer tells what the answering node wants and gives what the asking
// one lacks.
type itemsAnswer struct {
	Digest [32]byte
	Want   []item.Slot // ascending
	Items  [][]byte
}

func (m itemsAnswer) encode() []byte {
	b := append([]byte{kindItems | kindAnswer, version}, m.Digest[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.Want)))
	for _, s := range m.Want {
		b = item.AppendSlot(b, s)
	}
	return appendItems(b, m.Items)
}

func parseItemsAnswer(b []byte) (m itemsAnswer, err error) {
	if len(b) < 2+32+2 || b[0] != kindItems|kindAnswer || b[1] != version {
		return m, errMessage
	}
	m.Digest = [32]byte(b[2:34])
	n, b := int(binary.BigEndian.Uint16(b[34:])), b[36:]
	if n > item.MaxItems {
		return m, errMessage
	}
	for i := range n {
		var s item.Slot
		if s, b, err = item.CutSlot(b); err != nil {
			return m, fmt.Errorf("%w: %w", errMessage, err)
		}
		if i > 0 && s.Compare(m.Want[i-1]) <= 0 {
			return m, fmt.Errorf("%w: slots are not ascending", errMessage)
		}
		m.Want = append(m.Want, s)
	}
	m.Items, err = parseItems(b)
	return m, err
}

// giveRequest hands over items and tells the digest of the sender's set.
func giveRequest(digest [32]byte, raws [][]byte) []byte {
	return appendItems(append([]byte{kindGive, version}, digest[:]...), raws)
}

func parseGiveRequest(b []byte) (digest [32]byte, raws [][]byte, err error) {
	if len(b) < 2+32 {
		return digest, nil, errMessage
	}
	raws, err = parseItems(b[34:])
	return [32]byte(b[2:34]), raws, err
}

// giveAnswer carries the digest after the merge.
func giveAnswer(digest [32]byte) []byte {
	return append([]byte{kindGive | kindAnswer, version}, digest[:]...)
}

func parseGiveAnswer(b []byte) (digest [32]byte, err error) {
	if len(b) != 2+32 || b[0] != kindGive|kindAnswer || b[1] != version {
		return digest, errMessage
	}
	return [32]byte(b[2:]), nil
}

// appendItems appends a count u16, and of each item its length u16 and bytes.
func appendItems(b []byte, raws [][]byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(raws)))
	for _, raw := range raws {
		b = binary.BigEndian.AppendUint16(b, uint16(len(raw)))
		b = append(b, raw...)
	}
	return b
}

// parseItems reads a list of items that fills b. They alias b and are not
// verified.
func parseItems(b []byte) ([][]byte, error) {
	r := wire.NewReader(b, errMessage)
	var out [][]byte
	for range r.Count("items", int(r.U16()), item.MaxItems, 2) {
		out = append(out, r.Block("item", item.MaxSize))
	}
	if err := r.Done(); err != nil {
		return nil, err
	}
	return out, nil
}
