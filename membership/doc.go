// Package membership knows who is in the cluster and what each member has
// signed about itself.
//
// It owns the set of records and how it spreads: hints, digests in ping
// acknowledgements, SYNC, the reconnect loop; and it is the only user of
// memberlist. It does not own the bytes on the wire (membership/noisenet), the
// record format (membership/record), or what follows from a record (agent).
//
// Invariants: nothing enters the set that its owner did not sign and whose
// certificate chain does not end at the root, whoever handed it over; what
// memberlist says about alive, suspect and dead is shown to people and changes
// nothing else; a record stays when its node is gone; no single message is
// relied upon; memberlist's callbacks never block.
//
// One goroutine, the loop in Cluster.Run, owns the state. Everybody else reads
// an immutable view or sends it a message. Messages and
// timers: PROTOCOL.md, section 12; reasons: DESIGN.md.
//
// Start with Cluster and Snapshot.
package membership
