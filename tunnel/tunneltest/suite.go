package tunneltest

import (
	"testing"
)

// Run checks that a driver keeps its contract. Each case is a subtest with
// hosts of its own, and each checks in the end that Remove leaves nothing.
func Run(t *testing.T, h Harness) {
	cases := []struct {
		name string
		run  func(*testing.T, Harness)
	}{
		{"Probe", testProbe},
		{"DevicesOnlyInSecureNamespace", testPlacement},
		{"TrafficBothWays", testTraffic},
		{"TrafficOverIPv6Underlay", testTrafficIPv6},
		{"InitiatorComesFirst", testInitiatorFirst},
		{"RepeatedSetChangesNothing", testRepeat},
		{"OtherPeersUndisturbed", testOtherPeers},
		{"RemovedPeerIsRefused", testRemovedPeer},
		{"ForeignInnerSourceIsDropped", testForeignSource},
		{"DeletedDeviceComesBack", testDeletedDevice},
		{"NewKeyOfPeer", testNewKey},
		{"NextDriverAdopts", testAdopt},
		{"TwoEpochs", testTwoEpochs},
		{"PortChange", testPort},
		{"MTUChange", testMTU},
		{"BadPeer", testBadPeer},
		{"RemoveTwice", testRemove},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.run(t, h) })
	}
}
