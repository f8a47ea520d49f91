// Package pathmtu finds the largest packet that a path carries, by packets of that
// size and nothing else: routers that say nothing, or whose word is lost, do not
// matter. It is packetization layer path MTU discovery (RFC 8899) for one peer.
//
// It owns the decision which size to try next and what follows from the answer. It
// has no clock, socket or goroutine: the caller sends probes, and says what became
// of them and when.
//
// Invariants: a limit is set only when a packet above it was lost again after a
// smaller one had passed, so that loss alone sets none; and it goes only when a
// larger packet has come back.
//
// Start with Path.
package pathmtu
