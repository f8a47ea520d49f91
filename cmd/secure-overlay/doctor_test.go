package main

import (
	"strings"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/doctor"
)

// TestESPPeers: doctor says which peers ESP does not reach, which it reaches in
// UDP only, and why.
func TestESPPeers(t *testing.T) {
	k := api.KeyStatus{Peers: []api.KeyPeer{keyPeer("a", 2, 2, api.KeyStepDone, ""), keyPeer("b", 2, 2, api.KeyStepDone, "")}}
	blocked := []api.Problem{{Code: "esp-blocked", Message: "ESP does not reach node c", Fix: "let it through"}, {Code: "peer-quiet"}}
	if got := espPeers(config.Config{}, k, nil); got != nil {
		t.Errorf("nothing to say: %+v", got)
	}
	if got := espPeers(config.Config{}, k, blocked); len(got) != 1 || got[0].Level != doctor.Warn || got[0].Detail != blocked[0].Message || got[0].Fix == "" {
		t.Errorf("blocked: %+v", got)
	}
	k.Peers[0].InUDP, k.Peers[1].InUDP = true, true
	for encap, want := range map[string]struct {
		level doctor.Level
		why   string
	}{config.EncapAuto: {doctor.Warn, "got no answer"}, config.EncapUDP: {doctor.OK, "ipsec.encap is udp"}} {
		got := espPeers(config.Config{IPsec: config.IPsec{Encap: encap}}, k, nil)
		if len(got) != 1 || got[0].Level != want.level || !strings.Contains(got[0].Detail, "ESP in UDP with a, b") || !strings.Contains(got[0].Detail, want.why) {
			t.Errorf("encap %s: %+v", encap, got)
		}
	}
	k.Peers[1].UDPOnly = true
	got := espPeers(config.Config{IPsec: config.IPsec{Encap: config.EncapAuto}}, k, nil)
	if len(got) != 2 || got[0].Level != doctor.OK || !strings.Contains(got[0].Detail, "with b:") || got[1].Level != doctor.Warn || !strings.Contains(got[1].Detail, "with a:") {
		t.Errorf("one of them has nothing else: %+v", got)
	}
}

// TestClockFinding: doctor says by how much the clock is off, where status says
// only that it is.
func TestClockFinding(t *testing.T) {
	hour := api.Duration(time.Hour)
	for name, c := range map[string]struct {
		clock  api.Clock
		code   string // of a problem
		level  doctor.Level
		detail []string
	}{
		"alone":       {api.Clock{}, "", doctor.OK, []string{"no other node"}},
		"right":       {api.Clock{Others: 2}, "", doctor.OK, []string{"as those of most of 2 other nodes"}},
		"a bit off":   {api.Clock{Others: 1, Ahead: api.Duration(-3 * time.Second)}, "", doctor.OK, []string{"3s behind most of 1 other node"}},
		"behind":      {api.Clock{Others: 2, Behind: hour, Jumped: -hour, Ahead: -hour}, "clock-behind", doctor.Warn, []string{"what is wrong", "1h0m0s behind the trusted time", "1h0m0s behind where it should be", "1h0m0s behind most"}},
		"put forward": {api.Clock{Others: 2, Jumped: hour, Ahead: hour}, "clock-jumped", doctor.Warn, []string{"1h0m0s ahead of where it should be", "1h0m0s ahead of most"}},
		"differs":     {api.Clock{Others: 2, Ahead: hour}, "clock-differs", doctor.Warn, []string{"1h0m0s ahead of most"}},
	} {
		problems := []api.Problem{{Code: "peer-quiet"}}
		if c.code != "" {
			problems = append(problems, api.Problem{Code: c.code, Message: "what is wrong", Fix: "do this"})
		}
		f := clockFinding(c.clock, problems)
		if f.Name != "clock" || f.Level != c.level || (f.Fix != "") != (c.level == doctor.Warn) {
			t.Errorf("%s: %+v", name, f)
		}
		for _, want := range c.detail {
			if !strings.Contains(f.Detail, want) {
				t.Errorf("%s: %q lacks %q", name, f.Detail, want)
			}
		}
	}
}

func TestStoredClockFinding(t *testing.T) {
	trusted := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for at, want := range map[time.Time]doctor.Level{
		trusted.AddDate(0, 1, 0): doctor.OK, trusted.Add(-5 * time.Minute): doctor.OK,
		trusted.Add(-6 * time.Minute): doctor.Warn, time.Unix(0, 0): doctor.Warn,
	} {
		f := storedClockFinding(trusted, at, 5*time.Minute)
		if f.Level != want || (f.Fix != "") != (want == doctor.Warn) {
			t.Errorf("at %v: %+v", at, f)
		}
	}
}
