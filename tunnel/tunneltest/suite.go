package tunneltest

import (
	"testing"
)

// testCase is one case of the suite.
type testCase struct {
	name string
	run  func(*testing.T, Harness)
}

// Run checks that a driver keeps its contract. Each case is a subtest with
// hosts of its own, and each checks in the end that Remove leaves nothing.
func Run(t *testing.T, h Harness) {
	cases := []testCase{
		{"Probe", testProbe},
		{"DevicesOnlyInSecureNamespace", testPlacement},
		{"TrafficBothWays", testTraffic},
		{"TrafficOverIPv6Underlay", testTrafficIPv6},
		{"RepeatedSetChangesNothing", testRepeat},
		{"OtherPeersUndisturbed", testOtherPeers},
		{"RemovedPeerIsRefused", testRemovedPeer},
		{"ForeignInnerSourceIsDropped", testForeignSource},
		{"DeletedDeviceComesBack", testDeletedDevice},
		{"NewKeyOfPeer", testNewKey},
		{"NextDriverAdopts", testAdopt},
		{"NextDriverKnowsKeys", testKnowsKeys},
		{"TwoEpochs", testTwoEpochs},
		{"Rotation", testRotation},
		{"DroppedPeerIsGone", testDropped},
		{"LowerReceivesBeforeItSends", testLowerReceives},
		{"HigherReceivesBeforeItSends", testHigherReceives},
		{"SecretIsNotKept", testSecretNotKept},
		{"SecretGone", testSecretGone},
		{"OtherSecretIsRefused", testOtherSecret},
		{"MTUChange", testMTU},
		{"BadPeer", testBadPeer},
		{"RemoveTwice", testRemove},
	}
	if !h.Keyless {
		cases = append(cases, testCase{"InitiatorComesFirst", testInitiatorFirst}, testCase{"PeersWithoutSecret", testNoSecret})
	}
	if !h.InProcess {
		cases = append(cases, testCase{"SecretLeavesNoCopies", testNoCopies})
	}
	if !h.NoPort {
		cases = append(cases, testCase{"PortChange", testPort})
	}
	if h.Marks {
		cases = append(cases, testCase{"CongestionMarks", testMarks})
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.run(t, h) })
	}
}

// Interoperate checks that a driver and Harness.Other understand each other, in everything that
// crosses the wire. Each case is a subtest with hosts of its own.
func Interoperate(t *testing.T, h Harness) {
	for _, c := range []testCase{
		{"TrafficBothWays", testTraffic},
		{"TrafficOverIPv6Underlay", testTrafficIPv6},
		{"RepeatedSetChangesNothing", testRepeat},
		{"NewKeyOfPeer", testNewKey},
		{"NextDriverAdopts", testAdopt},
		{"TwoEpochs", testTwoEpochs},
		{"Rotation", testRotation},
		{"LowerReceivesBeforeItSends", testLowerReceives},
		{"HigherReceivesBeforeItSends", testHigherReceives},
		{"OtherSecretIsRefused", testOtherSecret},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(t, h) })
	}
	if h.Marks {
		t.Run("CongestionMarks", func(t *testing.T) { testMarks(t, h) })
	}
	if !h.Other.NoPort { // the sender is of the other driver, and lets such packets out
		t.Run("ForeignInnerSourceIsDropped", func(t *testing.T) { testForeignSource(t, h) })
	}
}
