// Package clock tells what time it is where that decides whom a node believes.
//
// It owns the trusted time, which is a time that has certainly come, and the
// verdict on the system clock: behind that, or off its pace. It does not own the
// file that carries the trusted time over a restart (keys/keystore), nor what
// follows from a certificate's end (keys, agent).
//
// Invariants: the trusted time never goes back, and the system clock never moves
// it. Only two things do: running, by a clock that nobody can set, and what an
// authority of the cluster has signed, no further than the end of this node's own
// certificate. Now is never before it.
//
// Start with Clock.Now and Clock.Saw; DESIGN.md says which attack each choice
// leaves. pace.go is pure.
package clock
