package main

import (
	"strings"
	"testing"

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
}
