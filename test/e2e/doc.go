// Package e2e tests the product as its users meet it: the real program as
// processes on several hosts made of network namespaces, driven by its
// command line, with a sniffer on every underlay link.
//
// It owns the scenarios only; hosts, captures and flows are test/netlab's,
// agents are test/fleet's.
//
// Invariants: every claim that something was not on the wire stands beside a
// positive control in the same capture; every wait has a deadline and a
// condition; nothing is left behind (TestMain looks). The program under test
// is the one that SECURE_OVERLAY_BIN names, or is built from this tree.
//
// Start with start in main_test.go, which makes a fleet.
package e2e
