package membership

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/internal/wire"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

// kindRotate asks an issuer for a target epoch.
const kindRotate = 0x07

// Codes of the answer. Unknown ones count as rotateFailed.
const (
	rotateMade     = 0 // or there was one already; its item follows
	rotateTooSoon  = 1 // seconds to wait follow, u32
	rotateDriver   = 2 // the driver is not known
	rotateNoIssuer = 3 // this node has no issuer key
	rotateBehind   = 4 // this node knows lower epochs only
	rotateFailed   = 5 // the reason is in the issuer's log
)

// rotateRequest asks for a target above After.
type rotateRequest struct {
	After  ids.Epoch
	Driver string
	Reason item.Reason
	Target []byte // the asker's target item; nil for the first epoch
}

// encode fails for a driver that this node does not know.
func (m rotateRequest) encode() ([]byte, error) {
	driver, err := item.DriverNumber(m.Driver)
	if err != nil {
		return nil, err
	}
	b := binary.BigEndian.AppendUint32([]byte{kindRotate, version}, uint32(m.After))
	b = append(b, driver, uint8(m.Reason))
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.Target)))
	return append(b, m.Target...), nil
}

// parseRotateRequest reads unknown drivers, too: they are refused with a code.
func parseRotateRequest(b []byte) (m rotateRequest, err error) {
	r := wire.NewReader(b, errMessage)
	r.Take(2) // kind and version
	m.After, m.Driver, m.Reason = ids.Epoch(r.U32()), item.DriverName(r.U8()), item.Reason(r.U8())
	if raw := r.Block("item", item.MaxSize); len(raw) > 0 {
		m.Target = raw
	}
	if m.After == 0 {
		r.Fail("no epoch to follow")
	}
	return m, r.Done()
}

// rotateAnswer carries the item of the new target.
func rotateAnswer(raw []byte) []byte {
	b := []byte{kindRotate | kindAnswer, version, rotateMade}
	b = binary.BigEndian.AppendUint16(b, uint16(len(raw)))
	return append(b, raw...)
}

func rotateRefusal(code uint8, wait time.Duration) []byte {
	b := []byte{kindRotate | kindAnswer, version, code}
	if code == rotateTooSoon {
		// Rounded up: whoever waits as long as this must not come too soon.
		b = binary.BigEndian.AppendUint32(b, uint32((wait+time.Second-1)/time.Second))
	}
	return b
}

// parseRotateAnswer returns the item, or what the issuer says against it.
func parseRotateAnswer(b []byte) ([]byte, error) {
	if len(b) < 3 || b[0] != kindRotate|kindAnswer || b[1] != version {
		return nil, errMessage
	}
	code, b := b[2], b[3:]
	switch code {
	case rotateMade:
		r := wire.NewReader(b, errMessage)
		raw := r.Block("item", item.MaxSize)
		if len(raw) == 0 {
			r.Fail("no item")
		}
		return raw, r.Done()
	case rotateTooSoon:
		if len(b) != 4 {
			return nil, errMessage
		}
		return nil, &TooSoonError{time.Duration(binary.BigEndian.Uint32(b)) * time.Second}
	case rotateDriver:
		return nil, fmt.Errorf("issuer: %w", ErrDriver)
	case rotateNoIssuer:
		return nil, errors.New("node has no issuer key")
	case rotateBehind:
		return nil, errBehind
	}
	return nil, errors.New("issuer could not make it; the reason is in its log")
}
