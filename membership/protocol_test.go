package membership

import (
	"flag"
	"testing"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/test/protocol"
)

var update = flag.Bool("update", false, "rewrite the vectors in PROTOCOL.md")

func TestProtocolVectors(t *testing.T) {
	protocol.Check(t, "messages", map[string][]byte{
		"ack":         ackPayload([32]byte{0xd1}, 7),
		"hint":        vectorHint.encode(),
		"sync":        vectorSync.encode(),
		"sync_answer": vectorAns.encode(),
		"push_answer": pushAnswer([32]byte{0xd3}),
		"get":         getRequest([]ids.NodeID{{0x04}, {0x05}}),
	}, *update)
}
