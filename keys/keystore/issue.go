package keystore

import (
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

// Issue admits the node of req, which asks from an address, by the token id. The
// caller has verified req's proof (keys.JoinRequest.VerifyProof).
//
// One token yields certificates for no more identities than it says, because the
// decision "this use belongs to this identity" is on disk, flushed, before
// anything is signed, and no later state takes it back:
//
//   - two requests at once: mu is held from the look-up to the answer;
//   - crash before the reservation is on disk: nothing was signed;
//   - crash after it: the token is used; the same identity may ask again
//     within RepeatWindow and gets the same bytes, any other is refused;
//   - the write fails: memory keeps the reservation, nothing is signed until
//     the same identity asks again and the write succeeds;
//   - the file is damaged later: see loadLedger.
//
// Errors: ErrTokenUnknown, ErrTokenRevoked, ErrTokenExpired, ErrTokenUsed,
// ErrTokenHostname, ErrTokenSource, ErrTokenWaiting, ErrTokenDenied; others are
// failures of the disk or of the delegation.
func (i *Issuer) Issue(now time.Time, from netip.Addr, id keys.TokenID, req keys.JoinRequest) (keys.JoinAnswer, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	a, err := i.issue(now, from.Unmap(), id, req)
	if err != nil {
		return keys.JoinAnswer{}, fmt.Errorf("issue certificate by token %v: %w", id, err)
	}
	return a, nil
}

func (i *Issuer) issue(now time.Time, from netip.Addr, id keys.TokenID, req keys.JoinRequest) (keys.JoinAnswer, error) {
	if err := i.open(); err != nil {
		return keys.JoinAnswer{}, err
	}
	if err := req.Validate(); err != nil {
		return keys.JoinAnswer{}, err
	}
	n, ok := i.ledger.find(id)
	if !ok {
		return keys.JoinAnswer{}, ErrTokenUnknown
	}
	t := i.ledger.Tokens[n]
	if t.Revoked {
		return keys.JoinAnswer{}, ErrTokenRevoked
	}
	if u := t.useOf(req.Identity); u >= 0 {
		return i.repeat(now, t, t.Uses[u], req)
	}
	switch t.state(now) {
	case TokenExpired:
		return keys.JoinAnswer{}, ErrTokenExpired
	case TokenUsed:
		return keys.JoinAnswer{}, ErrTokenUsed
	}
	if err := t.admits(from, req); err != nil {
		return keys.JoinAnswer{}, err
	}
	if t.Approve {
		if err := i.askOperator(n, now, from, req); err != nil {
			return keys.JoinAnswer{}, err
		}
	}
	if err := i.reserve(n, now, req); err != nil {
		return keys.JoinAnswer{}, err
	}
	t = i.ledger.Tokens[n]
	return i.answer(now, t, t.Uses[len(t.Uses)-1], "join")
}

// repeat answers a node that has used the token already. It costs no further
// use.
func (i *Issuer) repeat(now time.Time, t token, u use, req keys.JoinRequest) (keys.JoinAnswer, error) {
	if !u.repeatedBy(req, now) {
		return keys.JoinAnswer{}, ErrTokenUsed
	}
	if i.unsaved {
		if err := i.put(i.ledger); err != nil {
			return keys.JoinAnswer{}, err
		}
	}
	return i.answer(now, t, u, "repeat")
}

// useOf returns the index of the use by an identity, or -1.
func (t token) useOf(id keys.IdentityPublic) int {
	return slices.IndexFunc(t.Uses, func(u use) bool { return u.Identity == id })
}

// admits checks what the token says about names and addresses.
func (t token) admits(from netip.Addr, req keys.JoinRequest) error {
	if t.Hostname != "" {
		// The pattern was checked when the token was made.
		if ok, err := path.Match(t.Hostname, req.Hostname); err != nil || !ok {
			return fmt.Errorf("name %s: %w", req.Hostname, ErrTokenHostname)
		}
	}
	if len(t.Sources) > 0 && !slices.ContainsFunc(t.Sources, func(p netip.Prefix) bool { return p.Contains(from) }) {
		return fmt.Errorf("address %s: %w", from, ErrTokenSource)
	}
	return nil
}

// repeatedBy reports whether req comes from the node that used the token,
// with the same keys, soon enough. The hostname may differ: the answer is the
// certificate that was made the first time.
func (u use) repeatedBy(req keys.JoinRequest, now time.Time) bool {
	return u.Identity == req.Identity && u.Noise == req.Noise && now.Sub(u.At) < RepeatWindow
}

// reserve gives a use of token n to the node of req, on disk.
func (i *Issuer) reserve(n int, now time.Time, req keys.JoinRequest) error {
	notBefore := now.UTC().Truncate(time.Second)
	l := i.ledger.clone()
	l.Tokens[n].Uses = append(l.Tokens[n].Uses, use{
		Identity: req.Identity, Noise: req.Noise, Hostname: req.Hostname,
		Serial: l.NextSerial, At: notBefore, NotAfter: notBefore.Add(i.lifetime()),
	})
	l.Tokens[n].Waiting = slices.DeleteFunc(l.Tokens[n].Waiting, func(w waiting) bool { return w.Identity == req.Identity })
	l.NextSerial++
	return i.put(l)
}

// lifetime is CertLifetime, or less if the root allows less.
func (i *Issuer) lifetime() time.Duration { return min(CertLifetime, i.limits.MaxLifetime) }

// answer signs the certificate that the reservation describes, logs it, and
// only then lets it go.
func (i *Issuer) answer(now time.Time, t token, u use, reason string) (keys.JoinAnswer, error) {
	s := i.store
	if err := s.dir.at("certificate", "sign"); err != nil {
		return keys.JoinAnswer{}, err
	}
	credential, err := i.certify(now, keys.Cert{
		Serial: u.Serial, Identity: u.Identity, Noise: u.Noise, Hostname: u.Hostname,
		Token: t.ID, Roles: t.Roles, NotBefore: u.At, NotAfter: u.NotAfter,
	}, reason)
	if err != nil {
		return keys.JoinAnswer{}, err
	}
	id, err := s.Identity()
	if err != nil {
		return keys.JoinAnswer{}, err
	}
	return keys.JoinAnswer{
		Credential: credential,
		Access:     id.Access.Clone(),
		Seeds:      mergeSeeds(keys.MaxAnswerSeeds, t.Seeds, s.Seeds()),
	}, nil
}

// certify completes c, signs it and appends it to the issue log. Callers hold
// mu and have made c's serial durable.
func (i *Issuer) certify(now time.Time, c keys.Cert, reason string) (keys.Credential, error) {
	c.Cluster, c.Issuer, c.Inner = i.trust.Cluster, i.limits.Issuer, c.ID().InnerAddr()
	out := keys.Credential{
		Delegation: append([]byte(nil), i.delegation...),
		Cert:       keys.SignCert(i.key, c),
	}
	// An issuer gives out nothing that a member would refuse: this catches an
	// expired delegation and a clock that went back.
	if _, err := i.trust.VerifyMember(out, now); err != nil {
		return keys.Credential{}, fmt.Errorf("check the new certificate: %w", err)
	}
	if err := logIssue(i.store.dir, now, c, reason); err != nil {
		return keys.Credential{}, err
	}
	return out, nil
}

// ErrTooEarly refuses the renewal of a certificate in the first half of its
// life: each one costs a serial and a line in the issue log.
var ErrTooEarly = errors.New("certificate is in the first half of its life")

// Renew gives the holder of member a new certificate with the same keys, name,
// roles and serial and a new validity period. The serial stays because it tells
// which of two members is the older one: a renewal must not turn a decided
// dispute over an address around. The caller has verified member
// (keys.Trust.VerifyMember), that the peer holds its keys, and that the node
// is not revoked. early allows it in the first half of the certificate's life, for
// one whose issuer is revoked.
//
// A member that shows its old certificate again gets the same new one, so that
// a lost answer costs nothing and a hostile member cannot fill the issue log.
func (i *Issuer) Renew(now time.Time, member keys.Cert, early bool) (keys.Credential, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	out, err := i.renew(now, member, early)
	if err != nil {
		return keys.Credential{}, fmt.Errorf("renew certificate of %v: %w", member.ID(), err)
	}
	return cloneCredential(out), nil
}

func (i *Issuer) renew(now time.Time, member keys.Cert, early bool) (keys.Credential, error) {
	if err := i.open(); err != nil {
		return keys.Credential{}, err
	}
	if firstHalf(member, now) && !early {
		return keys.Credential{}, ErrTooEarly
	}
	if again, ok := i.renewed[member.ID()]; ok {
		// Verified at now: a certificate made while the clock was wrong is
		// not handed out again.
		c, err := i.trust.VerifyMember(again, now)
		if err == nil && c.Noise == member.Noise && firstHalf(c, now) && c.NotBefore.After(member.NotBefore) {
			return again, nil
		}
	}
	member.NotBefore = successorBegins(now, member)
	member.NotAfter = member.NotBefore.Add(i.lifetime())
	out, err := i.certify(now, member, "renew")
	if err != nil {
		return keys.Credential{}, err
	}
	i.renewed[member.ID()] = out
	return out, nil
}

// successorBegins is when a certificate begins that takes another's place: now, but
// later than that one, because every node keeps the one of a member that begins later.
// Certificates of two issuers may be made in one second, or by clocks of which
// the first was ahead; how far it may begin in the future those decide who verify it.
func successorBegins(now time.Time, of keys.Cert) time.Time {
	begin := now.UTC().Truncate(time.Second)
	if !begin.After(of.NotBefore) {
		begin = of.NotBefore.Add(time.Second)
	}
	return begin
}

func firstHalf(c keys.Cert, now time.Time) bool {
	return now.Before(c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2))
}
