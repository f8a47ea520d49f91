package agent

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// TestAgreeRefuses: a member that describes other devices than this node
// knows, or asks for what is not wanted, gets no secret.
func TestAgreeRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()).start(), w.machine(2, blue()).start()
		w.until("the pair", func() bool { return a.on(1, 1) && b.on(1, 1) })
		ours, theirs := w.board.record(b.id).Tunnels[0], w.board.record(a.id).Tunnels[0]
		good := rotate.Offer{
			Epoch: 1, Wire: uint8(record.WireWireGuard), Mine: theirs.Instance, Yours: ours.Instance,
			MyKey: theirs.Public, YourKey: ours.Public,
		}
		for name, change := range map[string]func(*rotate.Offer){
			"another epoch":        func(o *rotate.Offer) { o.Epoch = 2 },
			"another lane":         func(o *rotate.Offer) { o.Lane = 1 },
			"another wire":         func(o *rotate.Offer) { o.Wire = uint8(record.WireESP) },
			"an SPI for WireGuard": func(o *rotate.Offer) { o.SPI = ids.MinSPI },
			"another key of its":   func(o *rotate.Offer) { o.MyKey = keys.TunnelPublic{1} },
			"another key of ours":  func(o *rotate.Offer) { o.YourKey = keys.TunnelPublic{1} },
			"a former device":      func(o *rotate.Offer) { o.Mine++ },
			"our former device":    func(o *rotate.Offer) { o.Yours++ },
			// The pair has a secret that carries traffic.
			"nothing new": func(*rotate.Offer) {},
		} {
			o := good
			change(&o)
			if _, take, err := b.agent.agree(context.Background(), a.id, true, o.Encode()); err == nil || take != nil {
				t.Errorf("%s: agreed", name)
			}
		}
		if _, _, err := b.agent.agree(context.Background(), ids.NodeID{55}, true, good.Encode()); err == nil {
			t.Error("a stranger gets a secret")
		}
		if _, _, err := b.agent.agree(context.Background(), a.id, true, []byte("so-agree-v1")); err == nil || !strings.Contains(err.Error(), "not well formed") {
			t.Errorf("not an offer: %v", err)
		}
		if !a.on(1, 1) || !b.on(1, 1) {
			t.Error("the pair was disturbed")
		}
	})
}

// TestPairMessages: what is no message, or of nobody, changes nothing.
func TestPairMessages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()).start(), w.machine(2, blue()).start()
		w.until("the pair", func() bool { return a.on(1, 1) && b.on(1, 1) })
		if _, err := b.agent.pair(context.Background(), a.id, []byte("x")); err == nil {
			t.Error("nonsense is answered")
		}
		msg := rotate.Message{Boot: 9, Seq: 1}
		if _, err := b.agent.pair(context.Background(), ids.NodeID{55}, msg.Encode()); err == nil {
			t.Error("a stranger is answered")
		}
		if !a.on(1, 1) || !b.on(1, 1) {
			t.Error("the pair was disturbed")
		}
	})
}
