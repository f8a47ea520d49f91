package membership

import (
	"net/netip"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// State is what gossip believes about a member. Any member can lie about it,
// so it is for display only: no key, route or forwarding entry depends on it.
type State uint8

// The states.
const (
	StateUnknown State = iota // gossip has never heard of the node
	StateAlive                // gossip counts it, and it answers
	StateSuspect              // gossip counts it, but it has not answered this node for a while
	StateDead                 // it failed, or its agent ended
	// StateIndirect: as StateAlive, but by way of others: the two nodes have no underlay
	// address of one family, so neither can call the other.
	StateIndirect
)

var stateText = [...]string{"unknown", "alive", "suspect", "dead", "indirect"}

// Live reports whether a node is there as far as this one can know.
func (s State) Live() bool { return s == StateAlive || s == StateIndirect }

// String returns the lower-case word for s.
func (s State) String() string {
	if int(s) >= len(stateText) {
		return "invalid"
	}
	return stateText[s]
}

// MarshalText implements encoding.TextMarshaler.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Snapshot is the cluster as one node knows it at one moment. It is shared
// and immutable: readers must not write to anything it refers to.
type Snapshot struct {
	Self    ids.NodeID
	Digest  [32]byte    // of the record set
	Target  item.Target // Epoch is 0 until Run has read what the last process kept
	Members []Member    // ascending by ID; holds Self once a record was published
	// Revoked are the nodes that were thrown out, ascending by ID. None of them
	// but Self is in Members.
	Revoked []item.Revocation
	// Networks are those of the cluster that are not removed, by name.
	Networks []item.Network
	// RevokedIssuers are the issuer keys that the root has revoked, ascending.
	RevokedIssuers []item.IssuerRevocation

	Floor     item.Floor // lowest protocol version that members speak
	Heartbeat time.Time  // when the newest heartbeat of an issuer was made; zero: none is known
	// Stale says from whom news may be withheld: from this node. It is advice.
	Stale []Stale
	// Conflicts are the items of which two with one version came here lately,
	// ascending by slot.
	Conflicts []Conflict
	// Left are the nodes that have left, ascending by ID. None of them but Self
	// is in Members.
	Left []Departed
}

// Departed is a node that has left the cluster, by its own word. It is refused
// like a revoked one. When its certificate has ended long ago it is forgotten.
type Departed struct {
	ID       ids.NodeID
	Hostname string    // from the certificate; not unique
	Cert     keys.Cert // the newest that is known
	At       time.Time // as the node said
}

// Member is one node with a verified record.
type Member struct {
	ID        ids.NodeID
	Hostname  string // from the certificate; not unique
	Serial    uint64 // of the certificate
	Cert      keys.Cert
	Record    record.Node
	State     State          // advisory
	Synced    bool           // node and this one hold the same records, as far as known
	LastSeen  time.Time      // last direct answer or request; zero: none since start
	Addr      netip.AddrPort // underlay address last seen in a handshake; zero: none yet
	Hybrid    bool           // the last handshake with it was hybrid (X25519 and ML-KEM-768)
	Version   uint8          // of the protocol, in that handshake; 0: there was none
	SameItems bool           // node and this one hold the same cluster items, as far as known
	Told      bool           // this node has left, and the other is known to know it
	Apart     bool           // the two nodes have no underlay address of one family, so neither can call the other

	// Clock is what its system clock showed when this node's showed ClockAt, to
	// about a second; both zero: it has not said. It is for display.
	Clock, ClockAt time.Time
}

// HasLeft reports whether the node with this ID has left.
func (s Snapshot) HasLeft(id ids.NodeID) bool {
	return slices.ContainsFunc(s.Left, func(d Departed) bool { return d.ID == id })
}

// IssuerRevoked reports whether the root has revoked an issuer key.
func (s Snapshot) IssuerRevoked(issuer keys.IssuerPublic) bool {
	return slices.ContainsFunc(s.RevokedIssuers, func(r item.IssuerRevocation) bool { return r.Issuer == issuer })
}

// Member returns the member with this ID.
func (s Snapshot) Member(id ids.NodeID) (Member, bool) {
	for _, m := range s.Members {
		if m.ID == id {
			return m, true
		}
	}
	return Member{}, false
}
