// Package netdef holds what a definition of an overlay network says beyond its
// name, number, subnets and encryption: which addresses its endpoints get, and what
// the network lets through. Configuration, signed records and the control socket
// share these types, so that a network is the same thing in all of them.
//
// It owns no rule about what a person may write (package config) or a record may
// hold (package membership/record), and it hands out no address (package agent).
//
// Start with Options.
package netdef
