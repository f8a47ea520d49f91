package agent

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/events"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/clock"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership"
)

const day = 24 * time.Hour

var begin = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// month is a certificate of thirty days.
func month() keys.Cert { return keys.Cert{NotBefore: begin, NotAfter: begin.Add(30 * day)} }

// at is a moment so long after begin, by the clock that lets in and by the trusted
// time.
func at(now, trusted time.Duration) moment {
	return moment{now: begin.Add(now), trusted: begin.Add(trusted), leeway: 5 * time.Minute}
}

func TestStanding(t *testing.T) {
	for name, c := range map[string]struct {
		at   moment
		want standing
	}{
		"before it begins":                       {at(-400*day, -400*day), inForce},
		"new":                                    {at(0, 0), inForce},
		"half":                                   {at(15*day, 15*day), inForce},
		"four fifths":                            {at(24*day, 24*day), inForce},
		"past four fifths":                       {at(24*day+time.Second, 24*day), ageing},
		"the end":                                {at(30*day, 30*day), ageing},
		"within the tolerance":                   {at(30*day+5*time.Minute, 30*day+5*time.Minute), ageing},
		"past the tolerance":                     {at(30*day+5*time.Minute+time.Second, 30*day), expired},
		"within the grace":                       {at(31*day, 31*day), expired},
		"past the grace":                         {at(31*day+time.Second, 31*day+time.Second), ended},
		"a day ahead, by the system clock":       {at(29*day+2*day, 29*day), expired},
		"ten years ahead, by the system clock":   {at(3652*day, 15*day), expired},
		"ten years ahead, nothing trusted":       {moment{now: begin.Add(3652 * day)}, expired},
		"off since before the end, on again now": {at(40*day, 20*day), expired},
	} {
		if got := standingOf(month(), c.at); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
	if got := standingOf(keys.Cert{}, at(0, 0)); got != inForce {
		t.Errorf("no certificate: %d", got)
	}
	long := month()
	wide := at(30*day+23*time.Hour, 30*day)
	if wide.leeway = day; standingOf(long, wide) != ageing {
		t.Error("a tolerance of a day does not widen the end")
	}
}

func TestCertificateProblem(t *testing.T) {
	for name, c := range map[string]struct {
		at   moment
		code string
	}{
		"half":             {at(15*day, 15*day), ""},
		"last fifth":       {at(25*day, 25*day), "certificate-expiring"},
		"expired":          {at(30*day+time.Hour, 30*day), "certificate-expired"},
		"ten years":        {at(3652*day, 15*day), "certificate-expired"},
		"ended":            {at(40*day, 40*day), "certificate-ended"},
		"ended, an issuer": {at(40*day, 40*day), "certificate-ended"},
	} {
		cert := month()
		if strings.HasSuffix(name, "issuer") {
			cert.Roles = keys.RoleIssuer
		}
		p, ok := certificateProblem(cert, c.at)
		if ok != (c.code != "") || p.Code != c.code || ok && (p.Fix == "" || !strings.Contains(p.Message, "2026-01-31T00:00:00Z")) {
			t.Errorf("%s: %+v", name, p)
		}
	}
	if _, ok := certificateProblem(keys.Cert{}, at(0, 0)); ok {
		t.Error("no certificate at all is a problem of its own, not this one")
	}
}

// TestPeerCertificates: one line for each way in which certificates of others run
// out, whoever many they are, and none about this node.
func TestPeerCertificates(t *testing.T) {
	snap := membership.Snapshot{Self: ids.NodeID{1}}
	add := func(n byte, state membership.State) {
		snap.Members = append(snap.Members, membership.Member{ID: ids.NodeID{n}, Hostname: fmt.Sprint("web-", n), State: state, Cert: month()})
	}
	for n := range byte(7) {
		add(n+1, membership.StateAlive)
	}
	add(9, membership.StateDead)
	for name, c := range map[string]struct {
		at   moment
		code string
		text string
	}{
		"in force": {at: at(day, day)},
		"ageing":   {at(25*day, 25*day), "peer-certificate-expiring", "and 4 more nodes"},
		"expired":  {at(31*day, 31*day), "peer-certificate-expired", "and 4 more nodes"},
		// The dead node is gone for good.
		"ended": {at(40*day, 40*day), "peer-certificate-ended", "and 3 more nodes"},
	} {
		got := peerCertificates(snap, c.at)
		if c.code == "" {
			if len(got) != 0 {
				t.Errorf("%s: %+v", name, got)
			}
			continue
		}
		if len(got) != 1 || got[0].Code != c.code || !strings.Contains(got[0].Message, c.text) || got[0].Fix == "" || got[0].Subject != "" {
			t.Errorf("%s: %+v", name, got)
		}
	}
	snap.Members = snap.Members[:2]
	if got := peerCertificates(snap, at(25*day, 25*day)); len(got) != 1 || got[0].Subject != snap.Members[1].ID.String() || strings.Contains(got[0].Message, "more") {
		t.Errorf("one node: %+v", got)
	}
}

// TestForgottenIsAnEvent: a node that membership has forgotten has one, and one that left or was revoked not a
// second one.
func TestForgottenIsAnEvent(t *testing.T) {
	log, err := events.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	var snap membership.Snapshot
	for i, name := range []string{"self", "dead", "left", "revoked", "here"} {
		c := keys.Cert{Identity: keys.IdentityPublic{byte(i)}, Hostname: name, NotBefore: begin, NotAfter: time.Now().Add(day)}
		snap.Members = append(snap.Members, membership.Member{ID: c.ID(), Hostname: name, Cert: c})
	}
	id := func(i int) ids.NodeID { return snap.Members[i].ID }
	l := &loop{
		now: time.Now, events: log, identity: keystore.Identity{ID: id(0), Cert: snap.Members[0].Cert}, clock: clock.New(clock.Options{}),
		standings: map[ids.NodeID]known{}, left: map[ids.NodeID]bool{id(2): true}, revoked: map[ids.NodeID]bool{id(3): true},
	}
	l.noteCertificates(snap)
	here := membership.Snapshot{Members: []membership.Member{snap.Members[0], snap.Members[4]}}
	for range 2 {
		l.noteCertificates(here)
	}
	list, err := log.Read(events.Query{})
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || list[0].Kind != string(api.EventNodeForgotten) || list[0].Node != id(1) || list[0].Name != "dead" {
		t.Errorf("events %+v, want one about %s", list, id(1))
	}
	if len(l.standings) != 2 {
		t.Errorf("%d nodes are remembered, want 2", len(l.standings))
	}
}

// TestCertificateInStatus: status takes the renewed certificate as soon as it
// is in the own record.
func TestCertificateInStatus(t *testing.T) {
	now := time.Now()
	old := keys.Cert{Identity: keys.IdentityPublic{1}, NotBefore: now.Add(-29 * day), NotAfter: now.Add(day)}
	l := &loop{identity: keystore.Identity{ID: old.ID(), Cert: old}, clock: clock.New(clock.Options{})}
	if _, ok := certificateProblem(l.ownCert(membership.Snapshot{}), l.moment()); !ok {
		t.Error("an ending certificate is no problem")
	}
	renewed := old
	renewed.NotAfter = now.Add(30 * day)
	snap := membership.Snapshot{Members: []membership.Member{{ID: old.ID(), Cert: renewed}}}
	if p, ok := certificateProblem(l.ownCert(snap), l.moment()); ok {
		t.Errorf("a renewed certificate: %+v", p)
	}
}

// TestAdoptInto takes a certificate from the issuer to the disk and back.
func TestAdoptInto(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	begin := time.Now().Add(-20 * 24 * time.Hour)
	s, err := keystore.Init(dir, keystore.InitOptions{Hostname: "a", Now: begin})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	id, err := s.Identity()
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := s.Issuer()
	if err != nil {
		t.Fatal(err)
	}
	c, err := issuer.Renew(time.Now(), id.Cert, false)
	if err != nil {
		t.Fatal(err)
	}
	if err := adoptInto(s)(c); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := adoptInto(s)(c); !errors.Is(err, keystore.ErrClosed) {
		t.Errorf("closed store: %v", err)
	}
	if !id.Access.IsZero() {
		t.Error("closing the store left a copy of the access key that was in use before the renewal")
	}
	if s, err = keystore.Open(dir); err != nil {
		t.Fatal(err)
	}
	again, err := s.Identity()
	if err != nil || !again.Cert.NotAfter.After(id.Cert.NotAfter) || again.Cert.Serial != id.Cert.Serial {
		t.Errorf("after reopening: %+v, %v", again.Cert, err)
	}
}
