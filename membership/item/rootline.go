package item

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"strings"

	"github.com/secure-overlay/secure-overlay/keys"
)

// What operators carry between a node and the root key is one line: a tag, which
// keeps one from being taken for the other, and base64 of items, each after its length u16.
const (
	// RootRequestTag begins what the root key has to sign: items without signatures.
	RootRequestTag = "so-root-request:"
	// RootSignedTag begins what it has signed: whole items.
	RootSignedTag = "so-root-signed:"
)

// maxLine is how many items a line holds: a network that moves takes two.
const maxLine = 2

// Line returns the one-line text of one or two items.
func Line(tag string, items ...[]byte) string {
	var b []byte
	for _, raw := range items {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(raw))), raw...) //nolint:gosec // at most MaxSize
	}
	return tag + base64.StdEncoding.EncodeToString(b)
}

// ParseLine reads what Line returned. What the items are remains to be seen. ErrMalformed (wrapped) if it is another
// text.
func ParseLine(tag, text string) ([][]byte, error) {
	body, ok := strings.CutPrefix(strings.TrimSpace(text), tag)
	if !ok {
		return nil, malformed("the text does not begin with %s", tag)
	}
	if base64.StdEncoding.DecodedLen(len(body)) > maxLine*(2+MaxSize)+2 {
		return nil, malformed("the text is longer than %d items", maxLine)
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(body)
	if err != nil {
		return nil, malformed("the text after %s is not base64", tag)
	}
	r := newReader(raw)
	var items [][]byte
	for len(items) == 0 || len(r.Rest()) > 0 {
		items = append(items, r.Block("an item", MaxSize))
		if len(items) > maxLine {
			r.Fail("the text holds more than %d items", maxLine)
		}
		if r.Err() != nil {
			return nil, r.Err()
		}
	}
	return items, nil
}

// Unsigned returns the bytes of an item that the root key has to sign, so that it can
// be done where nothing but the root key is. ErrMalformed (wrapped) if it would be no item.
func (c Content) Unsigned(trust keys.Trust) ([]byte, error) {
	it := c.item()
	it.Root, it.Signer = true, trust.Root
	if err := it.validate(); err != nil {
		return nil, fmt.Errorf("draft %s: %w", c.Slot, err)
	}
	return encode(trust.Cluster, it), nil
}

// ParseUnsigned reads what Unsigned returned, of a kind that takes the root key. It is a claim: the holder of the
// root key decides about it.
func ParseUnsigned(unsigned []byte) (keys.Trust, *Item, error) {
	// With a signature of zeros it has the form of an item.
	raw := append(unsigned[:len(unsigned):len(unsigned)], make([]byte, keys.SignatureSize)...)
	cluster, it, err := parse(raw)
	if err != nil {
		return keys.Trust{}, nil, err
	}
	// The root can sign anything; by this way it signs what nobody else can, and what a text for people can say.
	switch it.Slot.Kind {
	case KindIssuer, KindFloor, KindNetwork:
	default:
		return keys.Trust{}, nil, malformed("it is about a %s, which takes no root key", it.Slot.Kind)
	}
	if !it.Root {
		return keys.Trust{}, nil, malformed("it is for an issuer to sign")
	}
	return keys.Trust{Cluster: cluster, Root: keys.RootPublic(it.Signer)}, it, nil
}

// SignUnsigned signs what Unsigned returned, and nothing else, with the
// root key. keys.ErrBadSignature (wrapped) if it is for another root key.
func SignUnsigned(root keys.RootPrivate, unsigned []byte) ([]byte, error) {
	trust, it, err := ParseUnsigned(unsigned)
	if err != nil {
		return nil, fmt.Errorf("sign with the root key: %w", err)
	}
	if trust.Root != root.Public() {
		return nil, fmt.Errorf("sign %s: it is for another root key: %w", it.Slot.Kind, keys.ErrBadSignature)
	}
	sig := root.Sign(keys.DomainItem, unsigned[len(keys.DomainItem):])
	return append(unsigned[:len(unsigned):len(unsigned)], sig[:]...), nil
}
