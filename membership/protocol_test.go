package membership

import (
	"flag"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/test/protocol"
)

var update = flag.Bool("update", false, "rewrite the vectors in PROTOCOL.md")

func TestProtocolVectors(t *testing.T) {
	protocol.Check(t, "messages", map[string][]byte{
		"ack":         ack{Digest: [32]byte{0xd1}, Epoch: 7, Items: [32]byte{0xd6}, Clock: time.Unix(0x69571100, 0)}.encode(),
		"hint":        vectorHint.encode(),
		"sync":        vectorSync.encode(),
		"sync_answer": vectorAns.encode(),
		"push_answer": pushAnswer([32]byte{0xd3}),
		"get":         getRequest([]ids.NodeID{{0x04}, {0x05}}),

		"items":           vectorItems.encode(),
		"items_answer":    vectorItemsAns.encode(),
		"pair":            append([]byte{kindPair, version}, "content"...),
		"claim":           append([]byte{kindClaim, version}, "content"...),
		"rotate":          vectorRotate(t),
		"rotate_answer":   rotateAnswer([]byte("item")),
		"rotate_too_soon": rotateRefusal(rotateTooSoon, 60*time.Second+1),
		"give":            giveRequest([32]byte{0xd6}, [][]byte{[]byte("item")}),
		"give_answer":     giveAnswer([32]byte{0xd7}),
		"item_message":    itemMessage([]byte("item")),

		"heartbeats":        beatsMessage(kindBeats, [][]byte{[]byte("beat")}),
		"heartbeats_answer": beatsMessage(kindBeats|kindAnswer, [][]byte{[]byte("news")}),
		"heartbeat_message": beatMessage([]byte("beat")),
	}, *update)
}
