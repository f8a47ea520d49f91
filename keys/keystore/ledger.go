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

	Limit    int            `json:"limit"` // of uses
	Hostname string         `json:"hostname,omitempty"`
	Sources  []netip.Prefix `json:"sources,omitempty"`
	Approve  bool           `json:"approve,omitempty"`
	Roles    uint8          `json:"roles,omitempty"`
	Uses     []use          `json:"uses,omitempty"`    // oldest first
	Waiting  []waiting      `json:"waiting,omitempty"` // oldest first
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

// waiting is a node that asked to be admitted by a token that wants approval.
// What is approved is exactly this: these keys under this name.
type waiting struct {
	Identity keys.IdentityPublic `json:"identity"`
	Noise    keys.NoisePublic    `json:"noise"`
	Hostname string              `json:"hostname"`
	From     netip.Addr          `json:"from"`
	Since    time.Time           `json:"since"`
	Decided  decision            `json:"decided,omitempty"`
}

// decision is what the operator said; empty: nothing yet.
type decision string

const (
	approved decision = "approved"
	denied   decision = "denied"
)

// clone copies l so far that changing the copy's tokens leaves l alone.
func (l ledger) clone() ledger {
	l.Tokens = slices.Clone(l.Tokens)
	for i, t := range l.Tokens {
		l.Tokens[i].Uses, l.Tokens[i].Waiting = slices.Clone(t.Uses), slices.Clone(t.Waiting)
	}
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
		if n := len(t.Uses); n > 0 && t.Uses[n-1].At.After(end) {
			end = t.Uses[n-1].At
		}
		return now.After(end.Add(keepTokens))
	})
}

func (t token) state(now time.Time) TokenState {
	switch {
	case t.Revoked:
		return TokenRevoked
	case t.usedUp():
		return TokenUsed
	case !now.Before(t.Expires):
		return TokenExpired
	}
	return TokenPending
}

func (t token) usedUp() bool { return len(t.Uses) >= t.Limit }

func (t token) info(now time.Time) TokenInfo {
	info := TokenInfo{
		ID: t.ID, State: t.state(now), Created: t.Created, Expires: t.Expires,
		Limit: t.Limit, Hostname: t.Hostname, Sources: slices.Clone(t.Sources), Approve: t.Approve, Roles: t.Roles,
	}
	for _, u := range t.Uses {
		info.Uses = append(info.Uses, TokenUse{Node: u.Identity.ID(), Hostname: u.Hostname, At: u.At, Serial: u.Serial})
	}
	for _, w := range t.Waiting {
		if w.Decided == "" && info.State == TokenPending {
			info.Waiting = append(info.Waiting, TokenWait{Node: w.Identity.ID(), Hostname: w.Hostname, From: w.From, Since: w.Since})
		}
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
		l.Tokens[i].Revoked = l.Tokens[i].Revoked || !l.Tokens[i].usedUp()
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
