package rotate

import (
	"errors"
	"testing"

	"github.com/secure-overlay/secure-overlay/keys"
)

func anOffer() Offer {
	return Offer{
		Epoch: 7, Lane: 1, Wire: 2, Mine: 3, Yours: 4,
		MyKey: keys.TunnelPublic{1, 2}, YourKey: keys.TunnelPublic{3, 4}, SPI: 0xabcdef01,
	}
}

func TestOffer(t *testing.T) {
	o := anOffer()
	b := o.Encode()
	if got, err := ParseOffer(b); err != nil || got != o {
		t.Errorf("parse = %+v, %v", got, err)
	}
	c := Consent{SPI: 0x1234}
	if got, err := ParseConsent(c.Encode()); err != nil || got != c {
		t.Errorf("parse consent = %+v, %v", got, err)
	}
	bad := [][]byte{nil, b[1:], b[:len(b)-1], append(b[:len(b):len(b)], 0), c.Encode()}
	for _, change := range []func(*Offer){
		func(o *Offer) { o.Epoch = 0 }, func(o *Offer) { o.Wire = 0 }, func(o *Offer) { o.Mine = 0 },
		func(o *Offer) { o.Yours = 0 }, func(o *Offer) { o.SPI = 255 },
	} {
		o := anOffer()
		change(&o)
		bad = append(bad, o.Encode())
	}
	for _, b := range bad {
		if _, err := ParseOffer(b); !errors.Is(err, ErrOffer) {
			t.Errorf("%x: %v", b, err)
		}
	}
	for _, b := range [][]byte{nil, c.Encode()[1:], append(c.Encode(), 0), Consent{SPI: 1}.Encode(), b} {
		if _, err := ParseConsent(b); !errors.Is(err, ErrOffer) {
			t.Errorf("consent %x: %v", b, err)
		}
	}
}

func FuzzOffer(f *testing.F) {
	f.Add(anOffer().Encode())
	f.Add(Consent{SPI: 0x1234}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if o, err := ParseOffer(b); err == nil && string(o.Encode()) != string(b) {
			t.Errorf("%x is not what its offer encodes to", b)
		}
		if c, err := ParseConsent(b); err == nil && string(c.Encode()) != string(b) {
			t.Errorf("%x is not what its consent encodes to", b)
		}
	})
}
