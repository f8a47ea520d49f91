package noisenet

import (
	"bytes"
	"encoding/binary"
	"errors"

	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/internal/wire"
)

// maxSigned bounds a certificate or delegation inside a handshake payload.
const maxSigned = 768

// payload is what each side says about itself inside the handshake, encrypted
// and authenticated with it:
//
//	version u8, port u16, boot u64, u16 length + certificate,
//	u16 length + delegation
type payload struct {
	version    uint8  // the responder's choice; the initiator repeats it
	port       uint16 // where this node listens, TCP and UDP
	boot       uint64 // random per process: a new one means all old sessions are gone
	credential keys.Credential
}

func (p payload) encode() []byte {
	b := make([]byte, 0, 16+len(p.credential.Cert)+len(p.credential.Delegation))
	b = append(b, p.version)
	b = binary.BigEndian.AppendUint16(b, p.port)
	b = binary.BigEndian.AppendUint64(b, p.boot)
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.credential.Cert)))
	b = append(b, p.credential.Cert...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(p.credential.Delegation)))
	return append(b, p.credential.Delegation...)
}

// errPayload is wrapped by every error about bytes that are no payload.
var errPayload = errors.New("handshake payload is malformed")

// parsePayload is canonical and copies what it keeps.
func parsePayload(b []byte) (payload, error) {
	r := wire.NewReader(b, errPayload)
	p := payload{version: r.U8(), port: r.U16(), boot: r.U64()}
	p.credential.Cert = bytes.Clone(r.Block("certificate", maxSigned))
	p.credential.Delegation = bytes.Clone(r.Block("delegation", maxSigned))
	if p.port == 0 || p.boot == 0 {
		r.Fail("port %d or boot number is zero", p.port)
	}
	if len(p.credential.Cert) == 0 || len(p.credential.Delegation) == 0 {
		r.Fail("no certificate or no delegation")
	}
	if err := r.Done(); err != nil {
		return payload{}, err
	}
	return p, nil
}
