package keys

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net/netip"
	"strings"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Why a token's text is refused. None of the errors repeats the text.
var (
	ErrNotToken       = errors.New("is not a join token: it begins with SO1")
	ErrTokenVersion   = errors.New("is a join token of a newer version: update secure-overlay on this host")
	ErrTokenTruncated = errors.New("join token is cut short: copy all of it")
	ErrTokenMistyped  = errors.New("join token is mistyped: its checksum does not match")
)

// MaxTokenSeeds is the greatest number of addresses in a Token.
const MaxTokenSeeds = 3

const (
	tokenPrefix  = "SO1"
	tokenFixed   = 1 + 16 + 32 + 8 + secretSize + 1 // length, cluster, root, ID, secret, count
	maxTokenSize = tokenFixed + MaxTokenSeeds*(1+16+2) + crc32.Size
)

// Token admits one node. It pins the cluster's root key, so that the joiner
// trusts whoever printed it and nobody else.
type Token struct {
	Cluster ids.ClusterID
	Root    RootPublic
	ID      TokenID
	Secret  TokenSecret
	Seeds   []netip.AddrPort // of issuers; at most MaxTokenSeeds
}

// NewTokenID draws a random token ID.
func NewTokenID() TokenID {
	var id TokenID
	rand.Read(id[:])
	return id
}

// Trust returns what the token pins.
func (t Token) Trust() Trust { return Trust{Cluster: t.Cluster, Root: t.Root} }

// Validate reports the first field that has no canonical form.
func (t Token) Validate() error {
	switch {
	case smallOrder(t.Root):
		return errors.New("join token: root key is of small order")
	case t.ID.IsZero():
		return errors.New("join token: no ID")
	case t.Secret.IsZero():
		return errors.New("join token: no secret")
	}
	if err := validSeeds(t.Seeds, MaxTokenSeeds); err != nil {
		return fmt.Errorf("join token: %w", err)
	}
	return nil
}

// Encode returns the text form, which is the secret itself: it is printed
// once, to the operator. Empty where Validate gives an error.
//
// The text is "SO1" and the base32 form (RFC 4648, upper case, no padding) of
// length u8 || cluster 16 || root key 32 || ID 8 || secret 32 || count u8 ||
// addresses || CRC-32 (IEEE) of "SO1" and all before.
func (t Token) Encode() string {
	if t.Validate() != nil {
		return ""
	}
	b := make([]byte, 1, maxTokenSize)
	defer func() { clear(b[:cap(b)]) }()
	b = append(b, t.Cluster[:]...)
	b = append(b, t.Root[:]...)
	b = append(b, t.ID[:]...)
	t.Secret.Expose(func(raw []byte) { b = append(b, raw...) })
	b = appendSeeds(b, t.Seeds)
	b[0] = uint8(len(b) + crc32.Size)
	b = binary.BigEndian.AppendUint32(b, tokenSum(b))
	return tokenPrefix + tokenText().EncodeToString(b)
}

// ParseToken reads the text form. White space around it and lower case are
// accepted, since people paste and mail systems change case; otherwise the
// text has one spelling.
func ParseToken(s string) (Token, error) {
	s = upper(trimToken(s))
	text, ok := strings.CutPrefix(s, tokenPrefix)
	switch {
	case ok:
	case len(s) > 2 && s[:2] == "SO" && s[2] > '1' && s[2] <= '9':
		return Token{}, ErrTokenVersion
	case len(s) > 0 && strings.HasPrefix(tokenPrefix, s):
		return Token{}, ErrTokenTruncated
	default:
		return Token{}, ErrNotToken
	}
	if len(text) > tokenText().EncodedLen(maxTokenSize) {
		return Token{}, ErrTokenMistyped
	}
	raw, err := decodeToken(text)
	if err != nil {
		return Token{}, err
	}
	defer clear(raw)
	return parseTokenBytes(raw)
}

// decodeToken turns the characters into bytes of the stated length with a
// valid checksum, and tells what is wrong with others: characters that do not
// belong, too few of them, or a checksum that does not match.
func decodeToken(text string) ([]byte, error) {
	for i := range len(text) {
		if c := text[i]; (c < 'A' || c > 'Z') && (c < '2' || c > '7') {
			return nil, ErrTokenMistyped
		}
	}
	if len(text) < 2 {
		return nil, ErrTokenTruncated
	}
	// The first two characters hold the length byte.
	head, err := tokenText().DecodeString(text[:2])
	if err != nil {
		return nil, ErrTokenMistyped
	}
	want := int(head[0])
	if want < tokenFixed+crc32.Size || want > maxTokenSize {
		return nil, ErrTokenMistyped
	}
	if len(text) < tokenText().EncodedLen(want) {
		return nil, ErrTokenTruncated
	}
	raw, err := tokenText().DecodeString(text)
	if err != nil || len(raw) != want || tokenText().EncodeToString(raw) != text {
		return nil, ErrTokenMistyped
	}
	sum := raw[want-crc32.Size:]
	if binary.BigEndian.Uint32(sum) != tokenSum(raw[:want-crc32.Size]) {
		return nil, ErrTokenMistyped
	}
	return raw, nil
}

// parseTokenBytes decodes bytes whose checksum holds, so a failure here is no
// slip of the hand: somebody made this text.
func parseTokenBytes(raw []byte) (Token, error) {
	r := reader{what: "join token", b: raw[:len(raw)-crc32.Size]}
	r.u8("length")
	var t Token
	t.Cluster = ids.ClusterID(r.take(16, "cluster"))
	t.Root = r.key("root key")
	t.ID = TokenID(r.take(8, "ID"))
	secret := r.take(secretSize, "secret")
	t.Seeds = r.addrPorts(MaxTokenSeeds)
	if err := r.done(); err != nil {
		return Token{}, err
	}
	s, err := TokenSecretFromRaw32(secret)
	if err != nil {
		return Token{}, fmt.Errorf("parse join token: secret: %w", ErrMalformed)
	}
	t.Secret = s
	if err := t.Validate(); err != nil {
		return Token{}, fmt.Errorf("parse %w: %w", err, ErrMalformed)
	}
	return t, nil
}

func tokenSum(b []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE([]byte(tokenPrefix)), crc32.IEEETable, b)
}

func tokenText() *base32.Encoding { return base32.StdEncoding.WithPadding(base32.NoPadding) }

func trimToken(s string) string { return strings.Trim(s, " \t\r\n") }

// upper changes a-z only: strings.ToUpper would turn letters of other scripts
// into ASCII ones and so give a token a second spelling.
func upper(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' {
			return r - 'a' + 'A'
		}
		return r
	}, s)
}
