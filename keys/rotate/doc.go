// Package rotate decides which key epoch each pair of nodes uses, so that keys
// change under load without losing a packet.
//
// It owns the machine of one node (Machine), what two nodes tell each other
// about their pair (Message), and the argument why no packet is lost
// (DESIGN.md). It owns no clock, socket, goroutine, randomness, secret or
// kernel object: time and facts come in, wishes go out.
//
// Invariants: the epoch that a node sends on is one that its peer receives on,
// as long as neither loses a device; a node has at most MaxEpochs epochs; a
// receiving half is dropped only after the peer said that it sends elsewhere;
// no step but the last resort (hold-down) rests on a timer alone. Secrecy does
// not rest on this package: a mistake here costs packets.
//
// Start with Machine, then DESIGN.md.
package rotate
