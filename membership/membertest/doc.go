// Package membertest makes clusters' keys for tests: a root, an issuer and
// members with valid certificates, all derived from labels, so that a test
// gets the same bytes each time. It must never be used outside tests: whoever
// knows the label knows the keys.
//
// Gossip builds memberlist's messages as a member could that keeps no rules.
//
// It owns no rules: what it makes is checked by packages keys, record and item. Its
// invariant is that equal labels and times give equal bytes.
//
// Start with Authority; Issuer signs cluster items.
package membertest
