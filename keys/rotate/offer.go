package rotate

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

// Offer is what the lower node of a pair says when it asks for a secret, in an
// AGREE on a stream of its own. Both ends derive the secret from that stream
// and these bytes, so whatever they disagree about gives them two secrets.
type Offer struct {
	Epoch       ids.Epoch
	Lane        ids.Lane
	Wire        uint8             // record.Wire of both devices
	Mine, Yours uint32            // instances of the sender's and the receiver's device
	MyKey       keys.TunnelPublic // of the sender's device; zero where the wire has none
	YourKey     keys.TunnelPublic // of the receiver's device, by its record
	SPI         ids.SPI           // under which the sender will receive; 0 for WireGuard
}

// Consent is the answer to an Offer.
type Consent struct {
	SPI ids.SPI // under which the answering node will receive; 0 for WireGuard
}

const (
	offerDomain   = "so-agree-v1"
	consentDomain = "so-agreed-v1"
	offerSize     = len(offerDomain) + 4 + 1 + 1 + 4 + 4 + 32 + 32 + 4
	consentSize   = len(consentDomain) + 4
)

// ErrOffer says that an offer or a consent is not well formed.
var ErrOffer = errors.New("agreement is not well formed")

// Encode returns the offer as it travels: 93 bytes, PROTOCOL.md 13.6.
func (o Offer) Encode() []byte {
	b := append(make([]byte, 0, offerSize), offerDomain...)
	b = binary.BigEndian.AppendUint32(b, uint32(o.Epoch))
	b = append(b, byte(o.Lane), o.Wire)
	b = binary.BigEndian.AppendUint32(b, o.Mine)
	b = binary.BigEndian.AppendUint32(b, o.Yours)
	b = append(b, o.MyKey[:]...)
	b = append(b, o.YourKey[:]...)
	return binary.BigEndian.AppendUint32(b, uint32(o.SPI))
}

// ParseOffer reads what Encode wrote; anything else is ErrOffer.
func ParseOffer(b []byte) (Offer, error) {
	if len(b) != offerSize || string(b[:len(offerDomain)]) != offerDomain {
		return Offer{}, fmt.Errorf("parse offer of %d bytes: %w", len(b), ErrOffer)
	}
	b = b[len(offerDomain):]
	o := Offer{
		Epoch: ids.Epoch(binary.BigEndian.Uint32(b)), Lane: ids.Lane(b[4]), Wire: b[5],
		Mine: binary.BigEndian.Uint32(b[6:]), Yours: binary.BigEndian.Uint32(b[10:]),
		MyKey: keys.TunnelPublic(b[14:46]), YourKey: keys.TunnelPublic(b[46:78]),
		SPI: ids.SPI(binary.BigEndian.Uint32(b[78:])),
	}
	if o.Epoch == 0 || o.Wire == 0 || o.Mine == 0 || o.Yours == 0 || o.SPI != 0 && !o.SPI.Valid() {
		return Offer{}, fmt.Errorf("parse offer for epoch %d: a number is out of range: %w", o.Epoch, ErrOffer)
	}
	return o, nil
}

// Encode returns the consent as it travels: 16 bytes, PROTOCOL.md 13.6.
func (c Consent) Encode() []byte {
	return binary.BigEndian.AppendUint32([]byte(consentDomain), uint32(c.SPI))
}

// ParseConsent reads what Encode wrote; anything else is ErrOffer.
func ParseConsent(b []byte) (Consent, error) {
	if len(b) != consentSize || string(b[:len(consentDomain)]) != consentDomain {
		return Consent{}, fmt.Errorf("parse consent of %d bytes: %w", len(b), ErrOffer)
	}
	c := Consent{SPI: ids.SPI(binary.BigEndian.Uint32(b[len(consentDomain):]))}
	if c.SPI != 0 && !c.SPI.Valid() {
		return Consent{}, fmt.Errorf("parse consent: SPI %s is reserved: %w", c.SPI, ErrOffer)
	}
	return c, nil
}
