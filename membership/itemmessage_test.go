package membership

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/membership/item"
)

var (
	vectorItems = itemsRequest{Digest: [32]byte{0xd6},
		Heads: []item.Head{{Slot: item.Slot{Kind: 250, Key: "key"}, Version: 3, Hash: [32]byte{0xe1}}}}
	vectorItemsAns = itemsAnswer{Digest: [32]byte{0xd7}, Want: []item.Slot{{Kind: 250, Key: "key"}}, Items: [][]byte{[]byte("item")}}
)

func vectorRotate(t testing.TB) []byte {
	t.Helper()
	b, err := rotateRequest{After: 6, Driver: item.DriverIPsec, Reason: item.ReasonManual, Target: []byte("item")}.encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestItemMessageRoundTrip(t *testing.T) {
	req, err := parseItemsRequest(vectorItems.encode())
	if diff := cmp.Diff(vectorItems, req); err != nil || diff != "" {
		t.Errorf("ITEMS request: %v\n%s", err, diff)
	}
	ans, err := parseItemsAnswer(vectorItemsAns.encode())
	if diff := cmp.Diff(vectorItemsAns, ans); err != nil || diff != "" {
		t.Errorf("ITEMS answer: %v\n%s", err, diff)
	}
	d, got, err := parseGiveRequest(giveRequest([32]byte{1}, vectorItemsAns.Items))
	if diff := cmp.Diff(vectorItemsAns.Items, got); err != nil || diff != "" || d != [32]byte{1} {
		t.Errorf("GIVE request: %x, %v\n%s", d, err, diff)
	}
	if d, err := parseGiveAnswer(giveAnswer([32]byte{2})); err != nil || d != [32]byte{2} {
		t.Errorf("GIVE answer: %x, %v", d, err)
	}
	rot, err := parseRotateRequest(vectorRotate(t))
	if diff := cmp.Diff(rotateRequest{6, item.DriverIPsec, item.ReasonManual, []byte("item")}, rot); err != nil || diff != "" {
		t.Errorf("ROTATE request: %v\n%s", err, diff)
	}
	if raw, err := parseRotateAnswer(rotateAnswer([]byte("item"))); err != nil || string(raw) != "item" {
		t.Errorf("ROTATE answer: %q, %v", raw, err)
	}
	if list, err := parseBeats(beatsMessage(kindBeats, vectorItemsAns.Items), kindBeats); err != nil || cmp.Diff(vectorItemsAns.Items, list) != "" {
		t.Errorf("HEARTBEATS request: %q, %v", list, err)
	}
	if _, err := parseBeats(beatsMessage(kindBeats, make([][]byte, item.MaxHeartbeats+1)), kindBeats); !errors.Is(err, errMessage) {
		t.Errorf("too many heartbeats: %v", err)
	}
	if raw, ok := parseBeatMessage(beatMessage([]byte("beat"))); !ok || string(raw) != "beat" {
		t.Errorf("heartbeat in gossip: %q, %v", raw, ok)
	}
	if _, ok := parseItemMessage(beatMessage([]byte("beat"))); ok {
		t.Error("a heartbeat reads as an item")
	}
	if raw, ok := parseItemMessage(itemMessage([]byte("item"))); !ok || string(raw) != "item" {
		t.Errorf("item in gossip: %q, %v", raw, ok)
	}
	if _, ok := parseHint(itemMessage(make([]byte, hintSize-1))); ok {
		t.Error("an item reads as a hint")
	}
}

// TestRotateCodes: every refusal reads as what it is, and unknown ones as the
// last.
func TestRotateCodes(t *testing.T) {
	for code, want := range map[uint8]error{rotateTooSoon: ErrTooSoon, rotateDriver: ErrDriver, rotateBehind: errBehind} {
		if _, err := parseRotateAnswer(rotateRefusal(code, time.Second)); !errors.Is(err, want) {
			t.Errorf("code %d: %v, want %v", code, err, want)
		}
	}
	for _, code := range []uint8{rotateNoIssuer, rotateFailed, 99} {
		if _, err := parseRotateAnswer(rotateRefusal(code, 0)); err == nil || decided(err) || errors.Is(err, errMessage) {
			t.Errorf("code %d: %v", code, err)
		}
	}
	var soon *TooSoonError
	if _, err := parseRotateAnswer(rotateRefusal(rotateTooSoon, 1500*time.Millisecond)); !errors.As(err, &soon) || soon.Wait != 2*time.Second {
		t.Errorf("1.5 s to wait reads as %v", err)
	}
}

// FuzzItemMessages feeds every parser: no panic, and what is read is written
// back as it was.
func FuzzItemMessages(f *testing.F) {
	for _, b := range [][]byte{
		vectorItems.encode(), vectorItemsAns.encode(), giveRequest([32]byte{1}, vectorItemsAns.Items), giveAnswer([32]byte{2}),
		vectorRotate(f), rotateAnswer([]byte("item")), rotateRefusal(rotateTooSoon, time.Minute), rotateRefusal(rotateDriver, 0),
		beatsMessage(kindBeats, [][]byte{[]byte("beat")}), beatsMessage(kindBeats|kindAnswer, nil), beatMessage([]byte("beat")),
		itemMessage([]byte("item")), append([]byte(itemsMagic), make([]byte, 34)...),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		same := func(what string, again []byte) {
			if !bytes.Equal(again, b) {
				t.Fatalf("%s is written back differently", what)
			}
		}
		if raw, ok := parseItemMessage(b); ok {
			same("item in gossip", itemMessage(raw))
		}
		if raw, ok := parseBeatMessage(b); ok {
			same("heartbeat in gossip", beatMessage(raw))
		}
		for _, kind := range []byte{kindBeats, kindBeats | kindAnswer} {
			if list, err := parseBeats(b, kind); err == nil {
				same("HEARTBEATS", beatsMessage(kind, list))
			} else if !errors.Is(err, errMessage) {
				t.Fatalf("error is not errMessage: %v", err)
			}
		}
		if a, ok := parseAck(b); ok && len(b) == ackSizeClock && !a.Clock.IsZero() {
			same("ack", a.encode())
		}
		_, _ = parseItemsFile(b)
		if len(b) < 2 {
			return
		}
		if m, err := parseItemsRequest(b); err == nil && b[0] == kindItems && b[1] == version {
			same("ITEMS request", m.encode())
		}
		if m, err := parseItemsAnswer(b); err == nil {
			same("ITEMS answer", m.encode())
		} else if !errors.Is(err, errMessage) {
			t.Fatalf("error is not errMessage: %v", err)
		}
		if d, raws, err := parseGiveRequest(b); err == nil && b[0] == kindGive && b[1] == version {
			same("GIVE request", giveRequest(d, raws))
		}
		if d, err := parseGiveAnswer(b); err == nil {
			same("GIVE answer", giveAnswer(d))
		}
		if raw, err := parseRotateAnswer(b); err == nil {
			same("ROTATE answer", rotateAnswer(raw))
		}
		if m, err := parseRotateRequest(b); err == nil && b[0] == kindRotate && b[1] == version {
			if again, err := m.encode(); err == nil {
				same("ROTATE request", again)
			}
		}
	})
}
