package noisenet

import (
	"encoding/binary"
	"fmt"

	"github.com/secure-overlay/secure-overlay/keys"
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

// parsePayload is canonical and copies what it keeps.
func parsePayload(b []byte) (payload, error) {
	if len(b) < 11 {
		return payload{}, fmt.Errorf("read handshake payload: %d bytes are too few", len(b))
	}
	p := payload{version: b[0], port: binary.BigEndian.Uint16(b[1:]), boot: binary.BigEndian.Uint64(b[3:])}
	if p.port == 0 || p.boot == 0 {
		return payload{}, fmt.Errorf("read handshake payload: port %d or boot number is zero", p.port)
	}
	rest := b[11:]
	var err error
	if p.credential.Cert, rest, err = takeSigned(rest); err != nil {
		return payload{}, err
	}
	if p.credential.Delegation, rest, err = takeSigned(rest); err != nil {
		return payload{}, err
	}
	if len(rest) != 0 {
		return payload{}, fmt.Errorf("read handshake payload: %d bytes left over", len(rest))
	}
	return p, nil
}

func takeSigned(b []byte) (field, rest []byte, err error) {
	if len(b) < 2 {
		return nil, nil, fmt.Errorf("read handshake payload: length is missing")
	}
	n := int(binary.BigEndian.Uint16(b))
	b = b[2:]
	if n == 0 || n > maxSigned || n > len(b) {
		return nil, nil, fmt.Errorf("read handshake payload: signed object of %d bytes", n)
	}
	return append([]byte(nil), b[:n]...), b[n:], nil
}
