package item

import (
	"encoding/base64"
	"strings"
)

// What operators carry between a node and the root key is one line: a tag, which
// keeps one from being taken for the other, and base64.
const (
	// IssuerRequestTag begins what the root key has to sign.
	IssuerRequestTag = "so-issuer-revocation-request:"
	// IssuerRevocationTag begins what it has signed.
	IssuerRevocationTag = "so-issuer-revocation:"
)

// Line returns the one-line text of bytes.
func Line(tag string, raw []byte) string { return tag + base64.StdEncoding.EncodeToString(raw) }

// ParseLine reads what Line returned. ErrMalformed (wrapped) if it is another
// text.
func ParseLine(tag, text string) ([]byte, error) {
	body, ok := strings.CutPrefix(strings.TrimSpace(text), tag)
	if !ok {
		return nil, malformed("the text does not begin with %s", tag)
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(body)
	if err != nil {
		return nil, malformed("the text after %s is not base64", tag)
	}
	return raw, nil
}
