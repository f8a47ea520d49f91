package membership

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

var (
	vectorHint = hint{
		Node:   ids.NodeID{0x11, 0x12},
		Seq:    0x0102030405060708,
		Record: [32]byte{0x21, 0x22},
		Holder: ids.NodeID{0x31},
	}
	vectorSync = syncRequest{
		After:  ids.NodeID{0x01},
		Digest: [32]byte{0xd1},
		Heads:  []record.Head{{ID: ids.NodeID{0x02}, Seq: 3, Credential: [32]byte{0xc1}, Record: [32]byte{0xe1}}},
	}
	vectorEntry = record.Entry{Credential: keys.Credential{Delegation: []byte("dd"), Cert: []byte("ccc")}, Record: []byte("rrrr")}
	vectorAns   = syncAnswer{
		Digest:  [32]byte{0xd2},
		More:    true,
		Want:    []ids.NodeID{{0x03}},
		Entries: []record.Entry{vectorEntry},
	}
)

// TestMessageVectors pins the bytes of PROTOCOL.md, section 12.
func TestMessageVectors(t *testing.T) {
	zero := func(n int) string { return hex.EncodeToString(make([]byte, n)) }
	entry := "0002" + "0003" + "00000004" + "6464" + "636363" + "72727272"
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"ack": {ack{Digest: [32]byte{0xd1}, Epoch: 7, Items: [32]byte{0xd6}, Clock: time.Unix(0x69571100, 0)}.encode(),
			"01" + "d1" + zero(31) + "00000007" + "d6" + zero(31) + "0000000069571100"},
		"hint": {vectorHint.encode(), "01" + "1112" + zero(14) + "0102030405060708" + "2122" + zero(30) + "31" + zero(15)},
		"sync": {vectorSync.encode(), "0101" + "01" + zero(15) + "d1" + zero(31) + "00000001" +
			"02" + zero(15) + "0000000000000003" + "c1" + zero(31) + "e1" + zero(31)},
		"sync answer": {vectorAns.encode(), "8101" + "d2" + zero(31) + "01" + "00000001" + "03" + zero(15) + "00000001" + entry},
		"push":        {pushRequest([32]byte{0xd4}, []record.Entry{vectorEntry}), "0201" + "d4" + zero(31) + "00000001" + entry},
		"push answer": {pushAnswer([32]byte{0xd3}), "8201" + "d3" + zero(31)},
		"get":         {getRequest([]ids.NodeID{{0x04}, {0x05}}), "0301" + "00000002" + "04" + zero(15) + "05" + zero(15)},
		"get answer":  {getAnswer([32]byte{0xd5}, []record.Entry{vectorEntry}), "8301" + "d5" + zero(31) + "00000001" + entry},
	} {
		if got := hex.EncodeToString(c.got); got != c.want {
			t.Errorf("%s is\n%s, want\n%s", name, got, c.want)
		}
	}
}

func TestMessageRoundTrip(t *testing.T) {
	want := ack{Digest: [32]byte{9}, Epoch: 1, Items: [32]byte{8}, HasItems: true, Clock: time.Unix(1_800_000_000, 0)}
	if a, ok := parseAck(want.encode()); !ok || a != want {
		t.Errorf("ack reads back as %+v, %v", a, ok)
	}
	if a, ok := parseAck(append(want.encode(), "newer field"...)); !ok || a != want {
		t.Errorf("longer ack reads back as %+v, %v", a, ok)
	}
	if a, ok := parseAck(want.encode()[:ackSizeItems-1]); !ok || a != (ack{Digest: want.Digest, Epoch: 1}) {
		t.Errorf("ack of before cluster items reads back as %+v, %v", a, ok)
	}
	if a, ok := parseAck(want.encode()[:ackSizeClock-1]); !ok || !a.HasItems || !a.Clock.IsZero() {
		t.Errorf("ack of before clocks reads back as %+v, %v", a, ok)
	}
	for _, clock := range []uint64{0, maxClock + 1, 1 << 63} {
		raw := binary.BigEndian.AppendUint64(want.encode()[:ackSizeItems], clock)
		if a, ok := parseAck(raw); !ok || !a.Clock.IsZero() {
			t.Errorf("clock %d reads back as %v", clock, a.Clock)
		}
	}
	if h, ok := parseHint(vectorHint.encode()); !ok || h != vectorHint {
		t.Errorf("hint reads back as %+v, %v", h, ok)
	}
	req, err := parseSyncRequest(vectorSync.encode())
	if diff := cmp.Diff(vectorSync, req); err != nil || diff != "" {
		t.Errorf("sync request: %v\n%s", err, diff)
	}
	ans, err := parseSyncAnswer(vectorAns.encode())
	if diff := cmp.Diff(vectorAns, ans); err != nil || diff != "" {
		t.Errorf("sync answer: %v\n%s", err, diff)
	}
	if d, err := parsePushAnswer(pushAnswer([32]byte{8})); err != nil || d != [32]byte{8} {
		t.Errorf("push answer: %x, %v", d, err)
	}
	d, got, err := parseGetAnswer(getAnswer([32]byte{7}, vectorAns.Entries))
	if diff := cmp.Diff(vectorAns.Entries, got); err != nil || diff != "" || d != [32]byte{7} {
		t.Errorf("get answer: %x, %v\n%s", d, err, diff)
	}
	d, got, err = parsePushRequest(pushRequest([32]byte{6}, vectorAns.Entries))
	if diff := cmp.Diff(vectorAns.Entries, got); err != nil || diff != "" || d != [32]byte{6} {
		t.Errorf("push request: %x, %v\n%s", d, err, diff)
	}
}

func TestMessagesOfOtherVersions(t *testing.T) {
	other := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at]++
		return b
	}
	if _, ok := parseAck(other(ack{}.encode(), 0)); ok {
		t.Error("ack of another version is read")
	}
	if _, ok := parseHint(other(vectorHint.encode(), 0)); ok {
		t.Error("hint of another version is read")
	}
	if _, err := parseSyncAnswer(other(vectorAns.encode(), 1)); err == nil {
		t.Error("sync answer of another version is read")
	}
	if _, err := parsePushAnswer(other(pushAnswer([32]byte{}), 1)); err == nil {
		t.Error("push answer of another version is read")
	}
	if _, _, err := parseGetAnswer(other(getAnswer([32]byte{}, nil), 1)); err == nil {
		t.Error("get answer of another version is read")
	}
}

// FuzzMessages feeds every parser: no panic, and what is read is written back
// as it was.
func FuzzMessages(f *testing.F) {
	for _, b := range [][]byte{
		ack{}.encode(), vectorHint.encode(), vectorSync.encode(), vectorAns.encode(),
		pushRequest([32]byte{1}, vectorAns.Entries), pushAnswer([32]byte{}), getRequest([]ids.NodeID{{1}}), getAnswer([32]byte{2}, vectorAns.Entries),
		relayed(ids.NodeID{1}, []byte{0x80})[1:],
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(what string, again []byte) {
			if !bytes.Equal(again, b) {
				t.Fatalf("%s is written back differently", what)
			}
		}
		parseAck(b)
		if h, ok := parseHint(b); ok {
			same("hint", h.encode())
		}
		if to, packet, ok := parseRelay(b); ok {
			same("packet to be carried on", relayed(to, packet)[1:])
		}
		if len(b) < 2 {
			return
		}
		if m, err := parseSyncRequest(b); err == nil && b[0] == kindSync && b[1] == version {
			same("sync request", m.encode())
		}
		if m, err := parseSyncAnswer(b); err == nil {
			same("sync answer", m.encode())
		}
		if d, err := parsePushAnswer(b); err == nil {
			same("push answer", pushAnswer(d))
		}
		if d, e, err := parsePushRequest(b); err == nil && b[0] == kindPush && b[1] == version {
			same("push request", pushRequest(d, e))
		}
		if d, e, err := parseGetAnswer(b); err == nil {
			same("get answer", getAnswer(d, e))
		} else if !errors.Is(err, errMessage) {
			t.Fatalf("error is not errMessage: %v", err)
		}
		if nodes, rest, err := cutIDs(b[2:], maxGet); err == nil && b[0] == kindGet && b[1] == version && len(rest) == 0 {
			same("get request", getRequest(nodes))
		}
	})
}

// TestCompareHeads checks the walk over two lists against the definition.
func TestCompareHeads(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		draw := func(name string) map[byte]record.Head {
			out := make(map[byte]record.Head)
			for _, id := range rapid.SliceOfDistinct(rapid.ByteRange(1, 9), rapid.ID).Draw(rt, name) {
				out[id] = record.Head{ID: ids.NodeID{id}, Seq: rapid.Uint64Range(1, 3).Draw(rt, "seq")}
			}
			return out
		}
		mine, theirs, after := draw("mine"), draw("theirs"), rapid.ByteRange(0, 9).Draw(rt, "after")
		var items []*record.Item
		var heads []record.Head
		want := map[string][]byte{}
		for id := byte(1); id <= 9; id++ {
			m, haveMine := mine[id]
			h, haveTheirs := theirs[id]
			if haveMine {
				items = append(items, &record.Item{Head: m})
			}
			if id <= after {
				continue
			}
			if haveTheirs {
				heads = append(heads, h)
			}
			give, take := false, false
			if haveMine || haveTheirs {
				give, take = record.Missing(m, h)
			}
			if give {
				want["give"] = append(want["give"], id)
			}
			if take {
				want["take"] = append(want["take"], id)
			}
		}
		give, take := compareHeads(items, ids.NodeID{after}, heads)
		got := map[string][]byte{}
		for _, it := range give {
			got["give"] = append(got["give"], it.Head.ID[0])
		}
		for _, id := range take {
			got["take"] = append(got["take"], id[0])
		}
		if diff := cmp.Diff(want, got); diff != "" {
			rt.Fatalf("differs (-want +got):\n%s", diff)
		}
	})
}
