package noisenet

import (
	"bytes"
	"context"
	"testing"

	"github.com/secure-overlay/secure-overlay/keys"
)

// TestSetCredential: later handshakes show the new certificate, in both roles,
// and what is open goes on.
func TestSetCredential(t *testing.T) {
	serials := make(chan uint64, 8)
	a, b := pair(t, func(c *Config) {
		c.Handler = func(_ context.Context, from Peer, req []byte) ([]byte, error) {
			serials <- from.Cert.Serial
			return req, nil
		}
	})
	ctx := testContext(t)
	if _, err := a.Call(ctx, b.node.id, []byte("x")); err != nil {
		t.Fatal(err)
	}
	first := <-serials
	a.SetCredential(a.node.cluster.certify(a.node, func(c *keys.Cert) { c.Serial = 4711 }))
	if _, err := a.Call(ctx, b.node.id, []byte("y")); err != nil {
		t.Fatal(err)
	}
	if got := <-serials; got != first {
		t.Errorf("open stream: serial %d, want %d", got, first)
	}
	peer, err := b.Contact(ctx, a.addr())
	if err != nil {
		t.Fatal(err)
	}
	if peer.Cert.Serial != 4711 || bytes.Equal(peer.Credential.Cert, a.node.credential.Cert) {
		t.Errorf("as responder: serial %d", peer.Cert.Serial)
	}
	if peer, err = a.Contact(ctx, b.addr()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "serial of the initiator", func() bool {
		p, ok := b.Peer(a.node.id)
		return ok && p.Cert.Serial == 4711
	})
	if peer.ID != b.node.id {
		t.Errorf("contact reached %s", peer.ID)
	}
}
