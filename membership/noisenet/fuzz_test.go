package noisenet

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Every decoder is canonical: what it accepts encodes to the same bytes.

func FuzzHeader(f *testing.F) {
	for _, h := range []header{{1, 1, streamMember, 7}, {1, 9, streamJoin, 0}, {2, 1, streamMember, 1}} {
		b := h.encode()
		f.Add(b[:])
	}
	f.Add([]byte("GET / HTTP"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHeader(b)
		if err != nil {
			return
		}
		if e := h.encode(); !bytes.Equal(e[:], b) {
			t.Errorf("%x encodes to %x", b, e)
		}
		if v, err := h.chooseVersion(versionMin, versionMax); err == nil && (v < h.min || v > h.max) {
			t.Errorf("chose version %d of %d-%d", v, h.min, h.max)
		}
	})
}

func FuzzPayload(f *testing.F) {
	f.Add(newTestCluster(1).node(10).party().payloadForFuzz().encode())
	f.Add(make([]byte, 11))
	f.Add(append(make([]byte, 11), 0, 1, 7, 0, 1, 8))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePayload(b)
		if err == nil && !bytes.Equal(p.encode(), b) {
			t.Errorf("%x encodes to %x", b, p.encode())
		}
	})
}

func (p *party) payloadForFuzz() payload {
	return payload{version: 1, port: p.port, boot: p.boot, credential: p.credential}
}

func FuzzFrame(f *testing.F) {
	var s secret
	out := must(newRecord(&s, true))
	f.Add(must(out.seal(nil, channelControl, []byte("x"))))
	f.Add([]byte{0, 17, 1})
	f.Add([]byte{0x40, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if n, err := frameLen(b[:min(len(b), framePrefix)]); err == nil && (n <= tagSize || n > maxCiphertext) {
			t.Errorf("frame of %d bytes", n)
		}
		in := must(newRecord(&s, false))
		channel, data, err := in.open(bytes.Clone(b))
		if err != nil {
			if _, _, again := in.open(b); !errors.Is(again, errRecordDead) {
				t.Error("the record lives on after an error")
			}
			return
		}
		back := must(must(newRecord(&s, true)).seal(nil, channel, data))
		if !bytes.Equal(back, b) {
			t.Errorf("%x seals to %x", b, back)
		}
	})
}

func FuzzDatagram(f *testing.F) {
	h := datagramHeader{datagramHint, 7, 0}.encode()
	f.Add(h[:])
	h = datagramHeader{datagramData, 7, 1 << 40}.encode()
	f.Add(append(h[:], make([]byte, 16)...))
	f.Add(make([]byte, maxDatagram+1))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseDatagram(b)
		if err != nil {
			return
		}
		if e := h.encode(); !bytes.Equal(e[:], b[:datagramHeaderSize]) {
			t.Errorf("%x encodes to %x", b, e)
		}
		// An open session takes it without a change of state.
		ctx := openContext{number: 1, opener: 1, answerer: 2}
		var s secret
		s[0] = 1
		_, recv, err := ctx.keys(&s)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Unix(1_800_000_000, 0)
		d := &datagramSession{recv: recv, created: now, peer: ids.NodeID{1}}
		if len(b) < datagramOverhead {
			return
		}
		if _, _, err := d.open(now, h, b); err == nil {
			t.Error("a datagram that nobody sealed was accepted")
		}
		if d.window != (replayWindow{}) || !d.lastRecv.IsZero() {
			t.Error("a forged datagram changed the session")
		}
	})
}

func FuzzControl(f *testing.F) {
	for _, c := range []controlFrame{
		{kind: controlHello}, {kind: controlConfirm, id: 1}, {kind: controlOpen, id: 1, index: 9},
		{kind: controlOpened, id: 2, index: 9}, {kind: controlRequest, id: 3, last: true, data: []byte("x")},
		{kind: controlResponse, id: 3, data: []byte("x")}, {kind: controlFailure, id: 3, last: true},
		{kind: controlAgree, id: 1, last: true, data: []byte("x")}, {kind: controlAgreed, id: 1, data: []byte("x")},
	} {
		f.Add(c.encode(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseControl(b)
		if err != nil {
			return
		}
		if e := c.encode(nil); !bytes.Equal(e, b) {
			t.Errorf("%x encodes to %x", b, e)
		}
	})
}

// FuzzAssembler feeds a sequence of frames; no sequence holds more than the
// limit or stays open at no cost.
func FuzzAssembler(f *testing.F) {
	f.Add([]byte{2, 1, 3, 2, 1, 0x83})
	f.Add([]byte{4, 1, 0x7f, 4, 1, 0x7f, 3, 2, 0x80})
	f.Add([]byte{3, 1, 0x7f, 3, 1, 0x7f, 4, 1, 0x80})
	f.Fuzz(func(t *testing.T, b []byte) {
		var a assembler
		for ; len(b) >= 3; b = b[3:] {
			kind := []uint8{controlRequest, controlResponse, controlFailure, controlAgree, controlAgreed}[b[0]%5]
			limit := map[uint8]int{controlRequest: MaxMessage, controlResponse: MaxMessage, controlFailure: maxFailure,
				controlAgree: MaxAgree, controlAgreed: MaxAgree}[kind]
			fr := controlFrame{kind: kind, id: uint32(b[1]) + 1, last: b[2]&0x80 != 0,
				data: make([]byte, int(b[2]&0x7f)*100)}
			msg, complete, err := a.add(fr)
			if err != nil {
				return
			}
			if complete == a.open || len(msg) > limit || len(a.data) > limit {
				t.Fatalf("complete %v, open %v, %d and %d bytes", complete, a.open, len(msg), len(a.data))
			}
		}
	})
}

func FuzzPacketFilter(f *testing.F) {
	ping, alive := []byte{mlPing, 0x80}, []byte{mlAlive, 0x80}
	for _, b := range [][]byte{ping, compound(ping, alive), crc(compound(ping)), compound(compound(ping)), {9, 0}, {244, 1}} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if checkPacket(b) != nil {
			return
		}
		for _, kind := range reachable(b, 0) {
			switch kind {
			case mlPing, mlIndirectPing, mlAck, mlNack, mlSuspect, mlAlive, mlDead, mlUser, mlCompound, mlHasCRC:
			default:
				t.Errorf("type %d reaches memberlist in %x", kind, b)
			}
		}
	})
}

// reachable lists the message types that memberlist would dispatch on: it
// descends as memberlist v0.7.0 does (ingestPacket, handleCommand).
func reachable(b []byte, depth int) []byte {
	if depth > 2 {
		return []byte{255} // deeper than one compound in one CRC
	}
	if depth == 0 && len(b) >= 5 && b[0] == mlHasCRC {
		return append([]byte{mlHasCRC}, reachable(b[5:], 1)...)
	}
	if len(b) == 0 {
		return []byte{254}
	}
	if b[0] != mlCompound {
		return b[:1]
	}
	out := []byte{mlCompound}
	count := int(b[1])
	lengths, rest := b[2:2+2*count], b[2+2*count:]
	for i := range count {
		n := int(lengths[2*i])<<8 | int(lengths[2*i+1])
		if rest[0] == mlCompound {
			return []byte{253}
		}
		out = append(out, rest[0])
		rest = rest[n:]
	}
	return out
}

func FuzzStreamFilter(f *testing.F) {
	f.Add([]byte{mlPing})
	f.Add([]byte("\x06\x83\xa4Join\xc3\xa5Nodes\x03\xacUserStateLen\xd1\x01\x00rest"))
	f.Add([]byte("\x08\x81\xaaUserMsgLen\xd2\x00\x40\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		err := checkStream(b)
		if errors.Is(err, errShort) && len(b) >= streamHead {
			t.Errorf("undecided after %d bytes", len(b))
		}
		// A verdict does not change with more bytes.
		if err == nil && checkStream(append(bytes.Clone(b), 0xff)) != nil {
			t.Error("accepted, then refused with one byte more")
		}
	})
}

// FuzzHandshake feeds a responder and an initiator with garbage.
func FuzzHandshake(f *testing.F) {
	c := newTestCluster(1)
	a, b := c.node(10).party(), c.node(20).party()
	_, first, err := newInitiator(a, ids.NodeID{})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(first)
	f.Add(make([]byte, 60))
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < headerSize {
			return
		}
		if h, err := parseHeader(in[:headerSize]); err == nil {
			if r, err := newResponder(b, h); err == nil {
				if _, done, _ := r.step(time.Now(), in[headerSize:]); done != nil {
					t.Error("established after message 1")
				}
			}
		}
		i, _, err := newInitiator(a, ids.NodeID{})
		if err != nil {
			t.Fatal(err)
		}
		if _, done, err := i.step(time.Now(), in); err == nil || done != nil {
			t.Error("garbage was accepted as message 2")
		}
	})
}
