package keystore

import (
	"errors"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/keys"
)

// Issue admits the node of req by the token id. The caller has verified
// req's proof (keys.JoinRequest.VerifyProof).
//
// One token yields certificates for one identity, because the decision "this
// token belongs to this identity" is on disk, flushed, before anything is
// signed, and no later state takes it back:
//
//   - two requests at once: mu is held from the look-up to the answer;
//   - crash before the reservation is on disk: nothing was signed;
//   - crash after it: the token is used; the same identity may ask again
//     within RepeatWindow and gets the same bytes, any other is refused;
//   - the write fails: memory keeps the reservation, nothing is signed until
//     the same identity asks again and the write succeeds;
//   - the file is damaged later: see loadLedger.
//
// Errors: ErrTokenUnknown, ErrTokenRevoked, ErrTokenExpired, ErrTokenUsed;
// others are failures of the disk or of the delegation.
func (i *Issuer) Issue(now time.Time, id keys.TokenID, req keys.JoinRequest) (keys.JoinAnswer, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	a, err := i.issue(now, id, req)
	if err != nil {
		return keys.JoinAnswer{}, fmt.Errorf("issue certificate by token %v: %w", id, err)
	}
	return a, nil
}

func (i *Issuer) issue(now time.Time, id keys.TokenID, req keys.JoinRequest) (keys.JoinAnswer, error) {
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
	reason := "join"
	switch t := i.ledger.Tokens[n]; t.state(now) {
	case TokenRevoked:
		return keys.JoinAnswer{}, ErrTokenRevoked
	case TokenExpired:
		return keys.JoinAnswer{}, ErrTokenExpired
	case TokenUsed:
		if !t.Use.repeatedBy(req, now) {
			return keys.JoinAnswer{}, ErrTokenUsed
		}
		reason = "repeat"
		if i.unsaved {
			if err := i.put(i.ledger); err != nil {
				return keys.JoinAnswer{}, err
			}
		}
	case TokenPending:
		if err := i.reserve(n, now, req); err != nil {
			return keys.JoinAnswer{}, err
		}
	}
	return i.answer(now, i.ledger.Tokens[n], reason)
}

// repeatedBy reports whether req comes from the node that used the token,
// with the same keys, soon enough. The hostname may differ: the answer is the
// certificate that was made the first time.
func (u use) repeatedBy(req keys.JoinRequest, now time.Time) bool {
	return u.Identity == req.Identity && u.Noise == req.Noise && now.Sub(u.At) < RepeatWindow
}

// reserve gives token n to the node of req, on disk.
func (i *Issuer) reserve(n int, now time.Time, req keys.JoinRequest) error {
	notBefore := now.UTC().Truncate(time.Second)
	l := i.ledger.clone()
	l.Tokens[n].Use = &use{
		Identity: req.Identity, Noise: req.Noise, Hostname: req.Hostname,
		Serial: l.NextSerial, At: notBefore, NotAfter: notBefore.Add(i.lifetime()),
	}
	l.NextSerial++
	return i.put(l)
}

// lifetime is CertLifetime, or less if the root allows less.
func (i *Issuer) lifetime() time.Duration { return min(CertLifetime, i.limits.MaxLifetime) }

// answer signs the certificate that the reservation describes, logs it, and
// only then lets it go.
func (i *Issuer) answer(now time.Time, t token, reason string) (keys.JoinAnswer, error) {
	s := i.store
	if err := s.dir.at("certificate", "sign"); err != nil {
		return keys.JoinAnswer{}, err
	}
	credential, err := i.certify(now, keys.Cert{
		Serial: t.Use.Serial, Identity: t.Use.Identity, Noise: t.Use.Noise, Hostname: t.Use.Hostname,
		Token: t.ID, NotBefore: t.Use.At, NotAfter: t.Use.NotAfter,
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
// is not revoked.
//
// A member that shows its old certificate again gets the same new one, so that
// a lost answer costs nothing and a hostile member cannot fill the issue log.
func (i *Issuer) Renew(now time.Time, member keys.Cert) (keys.Credential, error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	out, err := i.renew(now, member)
	if err != nil {
		return keys.Credential{}, fmt.Errorf("renew certificate of %v: %w", member.ID(), err)
	}
	return cloneCredential(out), nil
}

func (i *Issuer) renew(now time.Time, member keys.Cert) (keys.Credential, error) {
	if err := i.open(); err != nil {
		return keys.Credential{}, err
	}
	if firstHalf(member, now) {
		return keys.Credential{}, ErrTooEarly
	}
	if again, ok := i.renewed[member.ID()]; ok {
		// Verified at now: a certificate made while the clock was wrong is
		// not handed out again.
		c, err := i.trust.VerifyMember(again, now)
		if err == nil && c.Noise == member.Noise && firstHalf(c, now) {
			return again, nil
		}
	}
	member.NotBefore = now.UTC().Truncate(time.Second)
	member.NotAfter = member.NotBefore.Add(i.lifetime())
	out, err := i.certify(now, member, "renew")
	if err != nil {
		return keys.Credential{}, err
	}
	i.renewed[member.ID()] = out
	return out, nil
}

func firstHalf(c keys.Cert, now time.Time) bool {
	return now.Before(c.NotBefore.Add(c.NotAfter.Sub(c.NotBefore) / 2))
}
