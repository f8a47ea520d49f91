package membership

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// version is the first or second byte of every message below. A receiver
// that does not know it ignores the message (hint, ack) or answers an error.
const version = 1

// Kinds of control requests, the first byte. The answer has the high bit set.
const (
	kindSync   = 0x01 // heads: tell me in what we differ
	kindPush   = 0x02 // entries you lack
	kindGet    = 0x03 // entries of these nodes, please
	kindAnswer = 0x80
)

// Limits of the messages. A page holds at least one entry, so it can exceed
// pageSize by one; the sum stays below noisenet.MaxMessage.
const (
	pageSize   = 1 << 20
	maxGet     = 64
	maxEntries = 4096 // entries of a page; the smallest are about 700 bytes
	maxHeads   = record.MaxMembers
)

// The largest request and answer fit one control message: constants that
// would be negative do not compile.
const (
	_ = uint(noisenet.MaxMessage - (2 + 16 + 32 + 4 + maxHeads*record.HeadSize))
	_ = uint(noisenet.MaxMessage - (2 + 32 + 1 + 4 + maxHeads*16 + 4 + pageSize + record.MaxEntrySize))
)

var errMessage = errors.New("message is malformed")

// ack rides on every answer to a ping.
type ack struct {
	Digest   [32]byte  // of the record set
	Epoch    ids.Epoch // the target, for whoever watches; nothing follows from it
	Items    [32]byte  // digest of the cluster items
	HasItems bool      // false from nodes older than those
	// Clock is what the sender's system clock showed, in whole seconds, for
	// whoever compares; nothing follows from it. Zero from older nodes.
	Clock time.Time
}

func (a ack) encode() []byte {
	b := append([]byte{version}, a.Digest[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(a.Epoch))
	b = append(b, a.Items[:]...)
	return binary.BigEndian.AppendUint64(b, uint64(max(a.Clock.Unix(), 0)))
}

// Sizes of an ack payload: as it was first, with the digest of items, and with
// the sender's clock.
const (
	ackSize      = 1 + 32 + 4
	ackSizeItems = ackSize + 32
	ackSizeClock = ackSizeItems + 8
)

// maxClock is the last second of the year 9999; no clock shows more.
const maxClock = 253402300799

// parseAck reads an ack payload. Longer ones are from newer versions, which
// only append.
func parseAck(b []byte) (a ack, ok bool) {
	if len(b) < ackSize || b[0] != version {
		return a, false
	}
	a.Digest, a.Epoch = [32]byte(b[1:33]), ids.Epoch(binary.BigEndian.Uint32(b[33:]))
	if a.HasItems = len(b) >= ackSizeItems; a.HasItems {
		a.Items = [32]byte(b[ackSize:ackSizeItems])
	}
	if len(b) >= ackSizeClock {
		if sec := binary.BigEndian.Uint64(b[ackSizeItems:]); sec > 0 && sec <= maxClock {
			a.Clock = time.Unix(int64(sec), 0)
		}
	}
	return a, true
}

// hint says that a new record exists and who has it. It is a broadcast, may
// be lost, and proves nothing.
type hint struct {
	Node   ids.NodeID
	Seq    uint64
	Record [32]byte // SHA-256 of the record
	Holder ids.NodeID
}

const hintSize = 1 + 16 + 8 + 32 + 16

func (h hint) encode() []byte {
	b := append([]byte{version}, h.Node[:]...)
	b = binary.BigEndian.AppendUint64(b, h.Seq)
	b = append(b, h.Record[:]...)
	return append(b, h.Holder[:]...)
}

func parseHint(b []byte) (hint, bool) {
	if len(b) != hintSize || b[0] != version {
		return hint{}, false
	}
	return hint{
		Node:   ids.NodeID(b[1:17]),
		Seq:    binary.BigEndian.Uint64(b[17:25]),
		Record: [32]byte(b[25:57]),
		Holder: ids.NodeID(b[57:73]),
	}, true
}

// syncRequest asks for a comparison of all records of nodes above After.
type syncRequest struct {
	After  ids.NodeID
	Digest [32]byte      // of the whole set
	Heads  []record.Head // of nodes above After, ascending
}

func (m syncRequest) encode() []byte {
	b := make([]byte, 0, 2+16+32+4+len(m.Heads)*record.HeadSize)
	b = append(b, kindSync, version)
	b = append(b, m.After[:]...)
	b = append(b, m.Digest[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.Heads)))
	for _, h := range m.Heads {
		b = record.AppendHead(b, h)
	}
	return b
}

func parseSyncRequest(b []byte) (m syncRequest, err error) {
	const fixed = 2 + 16 + 32 + 4
	if len(b) < fixed {
		return m, errMessage
	}
	m.After, m.Digest = ids.NodeID(b[2:18]), [32]byte(b[18:50])
	n := int64(binary.BigEndian.Uint32(b[50:54]))
	if n > maxHeads || int64(len(b)-fixed) != n*record.HeadSize {
		return m, errMessage
	}
	m.Heads = make([]record.Head, n)
	last := m.After
	for i := range m.Heads {
		m.Heads[i] = record.ParseHead(b[fixed+i*record.HeadSize:])
		if m.Heads[i].ID.Compare(last) <= 0 {
			return m, fmt.Errorf("%w: heads are not ascending", errMessage)
		}
		last = m.Heads[i].ID
	}
	return m, nil
}

// syncAnswer tells what the answering node wants and gives what the asking
// one lacks. With More the asker repeats with After = the last entry's node.
type syncAnswer struct {
	Digest  [32]byte
	More    bool
	Want    []ids.NodeID
	Entries []record.Entry
}

func (m syncAnswer) encode() []byte {
	b := append([]byte{kindSync | kindAnswer, version}, m.Digest[:]...)
	var flags byte
	if m.More {
		flags = 1
	}
	b = append(b, flags)
	b = appendIDs(b, m.Want)
	return appendEntries(b, m.Entries)
}

func parseSyncAnswer(b []byte) (m syncAnswer, err error) {
	if len(b) < 2+32+1 || b[0] != kindSync|kindAnswer || b[1] != version || b[34] > 1 {
		return m, errMessage
	}
	m.Digest, m.More = [32]byte(b[2:34]), b[34] == 1
	if m.Want, b, err = cutIDs(b[35:], maxHeads); err != nil {
		return m, err
	}
	m.Entries, err = parseEntries(b)
	return m, err
}

// pushRequest hands over entries and tells the digest of the sender's set.
func pushRequest(digest [32]byte, entries []record.Entry) []byte {
	return appendEntries(append([]byte{kindPush, version}, digest[:]...), entries)
}

func parsePushRequest(b []byte) (digest [32]byte, entries []record.Entry, err error) {
	if len(b) < 2+32 {
		return digest, nil, errMessage
	}
	entries, err = parseEntries(b[34:])
	return [32]byte(b[2:34]), entries, err
}

// pushAnswer carries the digest after the merge.
func pushAnswer(digest [32]byte) []byte {
	return append([]byte{kindPush | kindAnswer, version}, digest[:]...)
}

func parsePushAnswer(b []byte) (digest [32]byte, err error) {
	if len(b) != 2+32 || b[0] != kindPush|kindAnswer || b[1] != version {
		return digest, errMessage
	}
	return [32]byte(b[2:]), nil
}

// getRequest asks for the entries of up to maxGet nodes.
func getRequest(nodes []ids.NodeID) []byte {
	return appendIDs([]byte{kindGet, version}, nodes)
}

// getAnswer carries those that the answering node holds and that fit a page,
// and the digest of its set.
func getAnswer(digest [32]byte, entries []record.Entry) []byte {
	return appendEntries(append([]byte{kindGet | kindAnswer, version}, digest[:]...), entries)
}

func parseGetAnswer(b []byte) (digest [32]byte, entries []record.Entry, err error) {
	if len(b) < 2+32 || b[0] != kindGet|kindAnswer || b[1] != version {
		return digest, nil, errMessage
	}
	entries, err = parseEntries(b[34:])
	return [32]byte(b[2:34]), entries, err
}

func appendIDs(b []byte, nodes []ids.NodeID) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(nodes)))
	for _, id := range nodes {
		b = append(b, id[:]...)
	}
	return b
}

func cutIDs(b []byte, limit int) ([]ids.NodeID, []byte, error) {
	if len(b) < 4 {
		return nil, nil, errMessage
	}
	n := int64(binary.BigEndian.Uint32(b))
	b = b[4:]
	if n > int64(limit) || int64(len(b)) < n*16 {
		return nil, nil, errMessage
	}
	out := make([]ids.NodeID, n)
	for i := range out {
		out[i] = ids.NodeID(b[i*16 : i*16+16])
	}
	return out, b[n*16:], nil
}

func appendEntries(b []byte, entries []record.Entry) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(entries)))
	for _, e := range entries {
		b = record.AppendEntry(b, e)
	}
	return b
}

// parseEntries reads a list of entries that fills b. They alias b and are not
// verified.
func parseEntries(b []byte) ([]record.Entry, error) {
	if len(b) < 4 {
		return nil, errMessage
	}
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	if n > maxEntries {
		return nil, fmt.Errorf("%w: %d entries", errMessage, n)
	}
	var out []record.Entry
	for range n {
		e, rest, err := record.CutEntry(b)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errMessage, err)
		}
		out, b = append(out, e), rest
	}
	if len(b) != 0 {
		return nil, fmt.Errorf("%w: %d bytes too many", errMessage, len(b))
	}
	return out, nil
}
