package keystore

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

const (
	// maxTokens bounds the list; a join token is a matter of minutes.
	maxTokens = 1000

	// keepTokens is how long a token that is of no more use stays listed, so
	// that its holder learns why it is refused.
	keepTokens = 24 * time.Hour

	// serialSkip is added after the newest token list was lost. That list was
	// at most one serial ahead of its copy.
	serialSkip = 1000
)

// ledger is the body of tokens.json: what has been promised and given out. A
// token's use and the serial it gets are in one file, hence one atomic write.
type ledger struct {
	NextSerial uint64  `json:"next_serial"`
	Tokens     []token `json:"tokens"`
}

// token is what the issuer keeps of a join token: not its secret.
type token struct {
	ID      keys.TokenID     `json:"id"`
	JoinKey string           `json:"join_key"` // keys.TokenSecret.JoinKey, 64 hexadecimal digits
	Created time.Time        `json:"created"`
	Expires time.Time        `json:"expires"`
	Seeds   []netip.AddrPort `json:"seeds,omitempty"`
	Revoked bool             `json:"revoked,omitempty"`
	Use     *use             `json:"use,omitempty"`
}

// use records to whom a token belongs from now on. Together with the issuer
// key it determines the certificate, byte for byte: Ed25519 is deterministic.
type use struct {
	Identity keys.IdentityPublic `json:"identity"`
	Noise    keys.NoisePublic    `json:"noise"`
	Hostname string              `json:"hostname"`
	Serial   uint64              `json:"serial"`
	At       time.Time           `json:"at"` // also the certificate's not-before
	NotAfter time.Time           `json:"not_after"`
}

// clone copies l so far that changing the copy's tokens leaves l alone.
func (l ledger) clone() ledger {
	l.Tokens = slices.Clone(l.Tokens)
	return l
}

func (l ledger) find(id keys.TokenID) (int, bool) {
	i := slices.IndexFunc(l.Tokens, func(t token) bool { return t.ID == id })
	return i, i >= 0
}

// prune drops tokens that have been useless for a day.
func (l *ledger) prune(now time.Time) {
	l.Tokens = slices.DeleteFunc(l.Tokens, func(t token) bool {
		end := t.Expires
		if t.Use != nil && t.Use.At.After(end) {
			end = t.Use.At
		}
		return now.After(end.Add(keepTokens))
	})
}

func (t token) state(now time.Time) TokenState {
	switch {
	case t.Revoked:
		return TokenRevoked
	case t.Use != nil:
		return TokenUsed
	case !now.Before(t.Expires):
		return TokenExpired
	}
	return TokenPending
}

func (t token) info(now time.Time) TokenInfo {
	info := TokenInfo{ID: t.ID, State: t.state(now), Created: t.Created, Expires: t.Expires}
	if t.Use != nil {
		info.UsedBy, info.Hostname = t.Use.Identity.ID(), t.Use.Hostname
		info.UsedAt, info.Serial = t.Use.At, t.Use.Serial
	}
	return info
}

func (t token) joinKey() (keys.AccessKey, error) {
	raw, err := hex.DecodeString(t.JoinKey)
	if err != nil {
		return keys.AccessKey{}, fmt.Errorf("token %v: join key: %w", t.ID, ErrCorrupt)
	}
	defer clear(raw)
	k, err := keys.AccessKeyFromRaw32(raw)
	if err != nil {
		return keys.AccessKey{}, fmt.Errorf("token %v: %w: %w", t.ID, err, ErrCorrupt)
	}
	return k, nil
}

// loadLedger reads the token list. If only the copy before the newest is
// left, a use that the lost one recorded is unknown: every token that looks
// pending is revoked, because it may have admitted a node already.
func loadLedger(d *dir) (l ledger, recovered bool, err error) {
	l, recovered, err = load[ledger](d, tokensName)
	if errors.Is(err, fs.ErrNotExist) {
		return l, false, fmt.Errorf("%s and its copy are missing: %w", d.file(tokensName), ErrCorrupt)
	}
	if err != nil || !recovered {
		return l, false, err
	}
	for i := range l.Tokens {
		l.Tokens[i].Revoked = l.Tokens[i].Revoked || l.Tokens[i].Use == nil
	}
	l.NextSerial += serialSkip
	return l, true, d.saveBoth(tokensName, l)
}

// logEntry is a line of issued.log.
type logEntry struct {
	Time     time.Time           `json:"time"`
	Serial   uint64              `json:"serial"`
	Token    keys.TokenID        `json:"token"`
	Node     string              `json:"node"`
	Identity keys.IdentityPublic `json:"identity"`
	Hostname string              `json:"hostname"`
	NotAfter time.Time           `json:"not_after"`
	Reason   string              `json:"reason"` // init, join, repeat or renew
}

// logIssue appends to the issue log and flushes it.
func logIssue(d *dir, now time.Time, c keys.Cert, reason string) error {
	line, err := json.Marshal(logEntry{
		Time: now.UTC().Truncate(time.Second), Serial: c.Serial, Token: c.Token, Node: c.ID().String(),
		Identity: c.Identity, Hostname: c.Hostname, NotAfter: c.NotAfter, Reason: reason,
	})
	if err != nil {
		return fmt.Errorf("log certificate %d: %w", c.Serial, err)
	}
	return d.appendLine(logName, line)
}

// mergeSeeds joins lists, without repetition, up to limit.
func mergeSeeds(limit int, lists ...[]netip.AddrPort) []netip.AddrPort {
	var out []netip.AddrPort
	for _, a := range slices.Concat(lists...) {
		if len(out) < limit && !slices.Contains(out, a) {
			out = append(out, a)
		}
	}
	return out
}
