package noisenet

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// Transport is a memberlist transport inside Noise, and the control channel
// beside it.
type Transport struct{ cfg Config }

var _ memberlist.NodeAwareTransport = (*Transport)(nil)

// New prepares a transport. It does no I/O: Open binds the port.
func New(cfg Config) *Transport { return &Transport{cfg: cfg.withDefaults()} }

// Open binds TCP and UDP on one port.
func (t *Transport) Open() error { return ErrClosed }

// Run serves until ctx ends or Shutdown.
func (t *Transport) Run(ctx context.Context) error { return ErrClosed }

// Shutdown closes all.
func (t *Transport) Shutdown() error { return nil }

// Port returns the bound port.
func (t *Transport) Port() uint16 { return 0 }

// Contact performs a handshake with an address of an unknown node.
func (t *Transport) Contact(ctx context.Context, addr netip.AddrPort) (Peer, error) {
	return Peer{}, ErrClosed
}

// Call sends a request to a peer and returns its response.
func (t *Transport) Call(ctx context.Context, id ids.NodeID, req []byte) ([]byte, error) {
	return nil, ErrClosed
}

// Drop closes all sessions of a node.
func (t *Transport) Drop(id ids.NodeID) {}

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *Transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) { return nil, 0, ErrClosed }

// WriteTo implements memberlist.Transport.
func (t *Transport) WriteTo(b []byte, addr string) (time.Time, error) { return time.Time{}, ErrClosed }

// WriteToAddress implements memberlist.NodeAwareTransport.
func (t *Transport) WriteToAddress(b []byte, addr memberlist.Address) (time.Time, error) {
	return time.Time{}, ErrClosed
}

// PacketCh implements memberlist.Transport.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return nil }

// DialTimeout implements memberlist.Transport.
func (t *Transport) DialTimeout(string, time.Duration) (net.Conn, error) { return nil, ErrClosed }

// DialAddressTimeout implements memberlist.NodeAwareTransport.
func (t *Transport) DialAddressTimeout(memberlist.Address, time.Duration) (net.Conn, error) {
	return nil, ErrClosed
}

// StreamCh implements memberlist.Transport.
func (t *Transport) StreamCh() <-chan net.Conn { return nil }

// JoinOptions says with what to join.
type JoinOptions struct {
	Addr     netip.AddrPort   // of an issuer
	Token    keys.Token       // from the operator
	Node     keys.NodePrivate // the newcomer's identity
	Noise    keys.NoisePublic // its Noise static key
	Hostname string           // goes into the certificate
	Log      *slog.Logger     // nil: discarded
}

// Join asks the issuer at o.Addr for a certificate.
func Join(ctx context.Context, o JoinOptions) (keys.JoinAnswer, error) {
	return keys.JoinAnswer{}, ErrClosed
}
