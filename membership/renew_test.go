package membership

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/membertest"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// stubRenewer renews for 30 days from now on, unless it is told otherwise.
type stubRenewer struct {
	lab *lab

	mu    sync.Mutex
	err   error
	edit  func(*keys.Cert)
	asked []keys.Cert
}

func (s *stubRenewer) Renew(now time.Time, member keys.Cert, _ bool) (keys.Credential, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked = append(s.asked, member)
	if s.err != nil {
		return keys.Credential{}, s.err
	}
	member.NotBefore = now.Truncate(time.Second)
	member.NotAfter = member.NotBefore.Add(30 * 24 * time.Hour)
	if s.edit != nil {
		s.edit(&member)
	}
	return s.lab.auth.Certify(member)
}

func (s *stubRenewer) set(f func(*stubRenewer)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(s)
}

// adopted remembers what a node was told to keep.
type adopted struct {
	mu   sync.Mutex
	last keys.Credential
	err  error
}

func (a *adopted) adopt(c keys.Credential) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.err == nil {
		a.last = c
	}
	return a.err
}

func (a *adopted) get() keys.Credential {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.last
}

// aged gives a node a certificate of which days have passed, and a role.
func (l *lab) aged(days int, role uint8) func(*Options) {
	return func(o *Options) {
		l.t.Helper()
		o.Identity.Cert.NotBefore = time.Now().AddDate(0, 0, -days).Truncate(time.Second)
		o.Identity.Cert.NotAfter = o.Identity.Cert.NotBefore.AddDate(0, 0, 30)
		o.Identity.Cert.Roles = role
		var err error
		if o.Identity.Credential, err = l.auth.Certify(o.Identity.Cert); err != nil {
			l.t.Fatal(err)
		}
	}
}

// agedLab has a delegation old enough for aged certificates.
func agedLab(t *testing.T) *lab {
	l := newLab(t)
	l.auth = agedAuthority(t, "membership")
	return l
}

func agedAuthority(t *testing.T, label string) *membertest.Authority {
	t.Helper()
	auth, err := membertest.New(label, time.Now().AddDate(0, 0, -60))
	if err != nil {
		t.Fatal(err)
	}
	return auth
}

func (l *lab) issuer(days int) (*node, *stubRenewer, *adopted) {
	r, a := &stubRenewer{lab: l}, &adopted{}
	n := l.start(0, l.aged(days, keys.RoleIssuer), func(o *Options) { o.Renewal, o.Adopt = r, a.adopt })
	n.Publish(content(0, 0))
	return n, r, a
}

func expires(id ids.NodeID, after time.Time) func(Snapshot) bool {
	return func(s Snapshot) bool {
		m, ok := s.Member(id)
		return ok && m.Cert.NotAfter.After(after)
	}
}

// TestRenewal: a member past half of its life gets a new certificate from an
// issuer, keeps it, shows it to everybody, and its record stays as it is.
func TestRenewal(t *testing.T) {
	l := agedLab(t)
	issuer, _, _ := l.issuer(1)
	var kept adopted
	old := l.start(1, l.aged(16, 0), func(o *Options) { o.Adopt = kept.adopt })
	old.Publish(content(1, 0))
	young := l.start(2, l.aged(14, 0), func(o *Options) { o.Adopt = kept.adopt })
	young.Publish(content(2, 0))
	nodes := []*node{issuer, old, young}
	before := old.opts.Identity.Cert
	for _, n := range nodes {
		n.until("the renewed certificate", expires(old.self, before.NotAfter))
	}
	converge(t, nodes, 3)
	m, _ := young.Snapshot().Member(old.self)
	if m.Serial != before.Serial || m.Cert.Noise != before.Noise {
		t.Errorf("renewed: serial %d, want %d", m.Serial, before.Serial)
	}
	if got, err := l.auth.Trust.VerifyMember(kept.get(), time.Now()); err != nil || got != m.Cert {
		t.Errorf("kept: %v, %v", got, err)
	}
	if m, _ := issuer.Snapshot().Member(young.self); !m.Cert.NotAfter.Equal(young.opts.Identity.Cert.NotAfter) {
		t.Error("a certificate in the first half of its life was renewed")
	}
	// What it signs from now on comes with the new certificate.
	old.Publish(content(1, 1))
	issuer.until("content under the new certificate", func(s Snapshot) bool {
		return shows(old.self, 1, 1)(s) && expires(old.self, before.NotAfter)(s)
	})
}

// TestIssuerRenewsItself needs nobody else, and works after the end, too: who
// holds the issuer key does not depend on a certificate.
func TestIssuerRenewsItself(t *testing.T) {
	for name, days := range map[string]int{"half life": 16, "expired": 40} {
		t.Run(name, func(t *testing.T) {
			l := agedLab(t)
			n, _, kept := l.issuer(days)
			n.until("its renewed certificate", expires(n.self, n.opts.Identity.Cert.NotAfter))
			if kept.get().Cert == nil {
				t.Error("nothing was kept")
			}
		})
	}
}

// TestRenewalIsRetried: a refusal, a full disk and a missing issuer are waited out.
func TestRenewalIsRetried(t *testing.T) {
	l := agedLab(t)
	kept := adopted{err: errors.New("no space left on device")}
	n := l.start(1, l.aged(20, 0), func(o *Options) { o.Adopt = kept.adopt })
	n.Publish(content(1, 0))
	l.waitLog("no issuer is known")
	_, r, _ := l.issuer(1)
	l.waitLog("no space left on device")
	if m, _ := n.Snapshot().Member(n.self); !m.Cert.NotAfter.Equal(n.opts.Identity.Cert.NotAfter) {
		t.Error("a certificate that could not be kept is shown")
	}
	r.set(func(r *stubRenewer) { r.err = errors.New("disk is full") })
	kept.mu.Lock()
	kept.err = nil
	kept.mu.Unlock()
	l.waitLog("certificate of a member is not renewed")
	r.set(func(r *stubRenewer) { r.err = nil })
	n.until("its renewed certificate", expires(n.self, n.opts.Identity.Cert.NotAfter))
}

// TestRenewalChecksTheAnswer: whatever an issuer answers, a node keeps only a
// certificate that the others accept for its keys, and that lasts longer.
func TestRenewalChecksTheAnswer(t *testing.T) {
	l := agedLab(t)
	self := l.identity(1)
	opts := Options{Identity: self, Adopt: func(keys.Credential) error { t.Error("adopted"); return nil }}
	l.aged(16, 0)(&opts)
	other := l.identity(2)
	foreign := agedAuthority(t, "another cluster")
	good := opts.Identity.Cert
	good.NotBefore, good.NotAfter = time.Now().Truncate(time.Second), time.Now().AddDate(0, 0, 30).Truncate(time.Second)
	cluster := &Cluster{opts: opts}
	cluster.view.Store(newView(self.ID, record.Set{}, item.Set{}, nil))
	r := renewal{c: cluster, cert: opts.Identity.Cert}
	for name, c := range map[string]struct {
		auth *membertest.Authority
		edit func(*keys.Cert)
	}{
		"other node": {l.auth, func(c *keys.Cert) {
			c.Identity, c.Noise, c.Inner = other.Cert.Identity, other.Cert.Noise, other.Cert.Inner
		}},
		"other Noise":  {l.auth, func(c *keys.Cert) { c.Noise = other.Cert.Noise }},
		"the same":     {l.auth, func(c *keys.Cert) { *c = opts.Identity.Cert }},
		"shorter":      {l.auth, func(c *keys.Cert) { c.NotAfter = opts.Identity.Cert.NotAfter.Add(-time.Hour) }},
		"in future":    {l.auth, func(c *keys.Cert) { c.NotBefore = time.Now().Add(time.Hour).Truncate(time.Second) }},
		"too long":     {l.auth, func(c *keys.Cert) { c.NotAfter = c.NotBefore.AddDate(1, 0, 0) }},
		"other issuer": {foreign, func(*keys.Cert) {}},
	} {
		cert := good
		c.edit(&cert)
		cred, err := c.auth.Certify(cert)
		if err != nil {
			t.Fatal(name, err)
		}
		if _, err := r.check(time.Now(), cred); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	cred, err := l.auth.Certify(good)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.check(time.Now(), cred); err != nil {
		t.Errorf("good answer: %v", err)
	}
}

// TestServeRenew: only a member with a certificate in force gets one, and only
// its own.
func TestServeRenew(t *testing.T) {
	l := agedLab(t)
	issuer, r, _ := l.issuer(1)
	var o Options
	o.Identity = l.identity(1)
	l.aged(20, 0)(&o)
	peer := noisenet.Peer{ID: o.Identity.ID, Credential: o.Identity.Credential}
	req := []byte{kindRenew, version}
	b, err := issuer.serve(context.Background(), peer, req)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := parseRenewAnswer(b); err != nil || bytes.Equal(c.Cert, o.Identity.Credential.Cert) {
		t.Errorf("answer: %v", err)
	}
	asked := len(r.asked)
	l.aged(40, 0)(&o)
	for name, p := range map[string]noisenet.Peer{
		"expired":       {ID: o.Identity.ID, Credential: o.Identity.Credential},
		"another's":     {ID: l.identity(2).ID, Credential: peer.Credential},
		"no credential": {ID: peer.ID},
	} {
		if _, err := issuer.serve(context.Background(), p, req); err == nil {
			t.Errorf("%s: renewed", name)
		}
	}
	if _, err := issuer.serve(context.Background(), peer, append(req, 0)); err == nil {
		t.Error("request with a tail is answered")
	}
	r.set(func(r *stubRenewer) {
		r.err = keystore.ErrTooEarly
		if len(r.asked) != asked {
			t.Errorf("issuer was asked %d times for nothing", len(r.asked)-asked)
		}
	})
	if _, err := issuer.serve(context.Background(), peer, req); err == nil || errors.Is(err, keystore.ErrTooEarly) {
		t.Errorf("refusal: %v, want one without reason", err)
	}
	n := l.start(2)
	if _, err := n.serve(context.Background(), peer, req); err == nil {
		t.Error("a node without issuer renewed")
	}
}

func FuzzRenewAnswer(f *testing.F) {
	f.Add(renewAnswer(keys.Credential{Delegation: []byte{1}, Cert: []byte{2, 3}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := parseRenewAnswer(b); err == nil && !bytes.Equal(renewAnswer(c), b) {
			t.Fatalf("%x has a second spelling", b)
		}
	})
}

// TestPublicationIsRetried: a record that could not be signed or numbered goes
// out as soon as it can, without the agent saying it again, and the reason is
// logged once.
func TestPublicationIsRetried(t *testing.T) {
	l := newLab(t)
	var failures atomic.Int32
	n := l.start(0, func(o *Options) {
		next := o.NextSeq
		o.NextSeq = func() (uint64, error) {
			if failures.Add(1) <= 3 {
				return 0, errors.New("no space left on device")
			}
			return next()
		}
	})
	n.Publish(content(0, 7))
	n.until("its own content", shows(n.self, 0, 7))
	if got := l.log.count("own record is not published"); got != 1 {
		t.Errorf("the failure was logged %d times, want 1", got)
	}
}
