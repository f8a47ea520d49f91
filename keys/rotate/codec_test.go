package rotate

import (
	"bytes"
	"encoding/hex"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/test/protocol"
)

var vectorMessage = Message{
	Boot: 0x0102030405060708, Seq: 9, AckBoot: 0x1112131415161718, AckSeq: 7, Tx: 4,
	Epochs: []EpochState{
		{Epoch: 4, Mine: 1, Yours: 2, Key: 0xa1a2a3a4, Proved: true},
		{Epoch: 5, Mine: 1, Yours: 3, Key: 0xb1b2b3b4},
	},
}

// TestMessageVector pins the bytes of PROTOCOL.md section 13.6.
func TestMessageVector(t *testing.T) {
	const want = "736f2d706169722d7631" + "0102030405060708" + "0000000000000009" +
		"1112131415161718" + "0000000000000007" + "00000004" + "02" +
		"00000004" + "00000001" + "00000002" + "a1a2a3a4" + "01" +
		"00000005" + "00000001" + "00000003" + "b1b2b3b4" + "00"
	if got := hex.EncodeToString(vectorMessage.Encode()); got != want {
		t.Errorf("encodes to\n%s, want\n%s", got, want)
	}
	protocol.Check(t, "pair", map[string][]byte{"state": vectorMessage.Encode()}, *update)
}

func genMessage() *rapid.Generator[Message] {
	return rapid.Custom(func(t *rapid.T) Message {
		u64, u32 := rapid.Uint64Range(1, 1<<64-1), rapid.Uint32Range(1, 1<<32-1)
		m := Message{Boot: u64.Draw(t, "boot"), Seq: u64.Draw(t, "seq"), Tx: ids.Epoch(rapid.Uint32().Draw(t, "tx"))}
		if rapid.Bool().Draw(t, "acked") {
			m.AckBoot, m.AckSeq = u64.Draw(t, "ack boot"), u64.Draw(t, "ack seq")
		}
		last := uint32(0)
		for range rapid.IntRange(0, MaxEpochs).Draw(t, "epochs") {
			if last == 1<<32-1 {
				break
			}
			last = rapid.Uint32Range(last+1, 1<<32-1).Draw(t, "epoch")
			m.Epochs = append(m.Epochs, EpochState{
				Epoch: ids.Epoch(last), Mine: u32.Draw(t, "mine"), Yours: rapid.Uint32().Draw(t, "yours"),
				Key: keys.KeyID(u32.Draw(t, "key")), Proved: rapid.Bool().Draw(t, "proved"),
			})
		}
		return m
	})
}

func TestMessageRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := genMessage().Draw(t, "message")
		raw := m.Encode()
		if raw == nil || len(raw) > MaxMessage {
			t.Fatalf("encodes to %d bytes", len(raw))
		}
		back, err := ParseMessage(raw)
		if diff := cmp.Diff(m, back); err != nil || diff != "" {
			t.Fatalf("reads back as %v\n%s", err, diff)
		}
	})
}

// TestMessageRefused: what has no meaning has no encoding, and no decoder
// accepts it.
func TestMessageRefused(t *testing.T) {
	for name, change := range map[string]func(*Message){
		"boot zero":        func(m *Message) { m.Boot = 0 },
		"sequence zero":    func(m *Message) { m.Seq = 0 },
		"ack without boot": func(m *Message) { m.AckBoot = 0 },
		"ack without seq":  func(m *Message) { m.AckSeq = 0 },
		"epoch zero":       func(m *Message) { m.Epochs[0].Epoch = 0 },
		"not ascending":    func(m *Message) { m.Epochs[1].Epoch = 4 },
		"instance zero":    func(m *Message) { m.Epochs[0].Mine = 0 },
		"key zero":         func(m *Message) { m.Epochs[0].Key = 0 },
		"four epochs": func(m *Message) {
			m.Epochs = append(m.Epochs, EpochState{6, 1, 1, 1, false}, EpochState{7, 1, 1, 1, false})
		},
	} {
		m := vectorMessage
		m.Epochs = append([]EpochState(nil), m.Epochs...)
		change(&m)
		if raw := m.Encode(); raw != nil {
			t.Errorf("%s: encodes to %x", name, raw)
		}
	}
	raw := vectorMessage.Encode()
	for name, bad := range map[string][]byte{
		"empty":          nil,
		"cut short":      raw[:len(raw)-1],
		"byte too much":  append(bytes.Clone(raw), 0),
		"other version":  bytes.Replace(raw, []byte("v1"), []byte("v2"), 1),
		"reserved flag":  append(bytes.Clone(raw[:len(raw)-1]), 2),
		"count too high": append(append(bytes.Clone(raw[:messageHead-1]), 3), raw[messageHead:]...),
		"boot zero":      append(append(bytes.Clone(raw[:10]), make([]byte, 8)...), raw[18:]...),
	} {
		if m, err := ParseMessage(bad); !errors.Is(err, keys.ErrMalformed) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
}

// FuzzParseMessage: the decoder does not panic, and what it accepts encodes to
// the very bytes that it read.
func FuzzParseMessage(f *testing.F) {
	raw := vectorMessage.Encode()
	f.Add([]byte{})
	f.Add(raw)
	f.Add(raw[:messageHead])
	f.Add(append(bytes.Clone(raw), 0))
	for i := range raw {
		changed := bytes.Clone(raw)
		changed[i] ^= 0xff
		f.Add(changed)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := ParseMessage(raw)
		if err != nil {
			if !errors.Is(err, keys.ErrMalformed) {
				t.Errorf("unexpected error %v", err)
			}
			return
		}
		if again := m.Encode(); !bytes.Equal(again, raw) {
			t.Errorf("%x encodes to %x", raw, again)
		}
	})
}
