// Package membership knows who is in the cluster, what each member has signed
// about itself, and what the cluster says about itself.
//
// It owns the sets of records and of cluster items and how they spread: hints,
// digests in ping acknowledgements, SYNC, the reconnect loop; requests for a
// new target epoch; and it is the only user of memberlist. It does not own the
// bytes on the wire (membership/noisenet), the formats (membership/record,
// membership/item), what follows from a record or a target (agent), or what
// pair messages and agreements say (keys/rotate).
//
// Invariants: nothing enters the set that its owner did not sign and whose
// certificate chain does not end at the root, whoever handed it over; what
// memberlist says about alive, suspect and dead is shown to people and changes
// nothing else; a record stays when its node is gone; a cluster item is on disk
// before anything follows from it, but for a revocation, which is applied
// first; the target epoch never goes back; a node that was revoked, or left,
// stays out; what is shown as stale or as a conflict changes nothing else; no
// single message is relied upon; memberlist's callbacks never block.
//
// One goroutine, the loop in Cluster.Run, owns the state, but for the cluster
// items, which have a lock. Everybody else reads
// an immutable view or sends it a message. Messages and
// timers: PROTOCOL.md, section 12; reasons: DESIGN.md.
//
// Start with Cluster and Snapshot.
package membership
