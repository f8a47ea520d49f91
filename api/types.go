package api

import (
	"net/netip"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/netdef"
)

// Schema is the version of the types in this package. It stands in every
// answer as "schema" and grows when a field changes its meaning or goes;
// new fields do not change it.
const Schema = 1

// State summarises the health of the agent, a network or a tunnel.
type State string

// The states.
const (
	StateStarting State = "starting" // not yet ready
	StateOK       State = "ok"
	StateDegraded State = "degraded" // works in part: see the problems
	StateFailed   State = "failed"   // does not work: see the problems
	StateStopping State = "stopping"
	StateUnused   State = "unused" // of a network: nothing on this node uses it
)

// Status is the whole truth about the agent on one screen.
type Status struct {
	Schema  int           `json:"schema"`
	Cluster ids.ClusterID `json:"cluster"`
	Root    string        `json:"root"` // public: so-root-pub: and 64 hexadecimal digits
	Node    NodeRef       `json:"node"`
	Version string        `json:"version"`
	PID     int           `json:"pid"`
	Started time.Time     `json:"started"`
	State   State         `json:"state"`
	// Ready is true once the agent has made the kernel match its
	// configuration for the first time, whatever its peers do.
	Ready   bool   `json:"ready"`
	Members Count  `json:"members"` // alive of known, this node included
	Driver  Driver `json:"driver"`
	// Epoch is the newest key epoch of which this node has a device.
	Epoch    ids.Epoch  `json:"epoch"`
	Keys     KeySummary `json:"keys"`
	Expires  time.Time  `json:"expires,omitzero"` // end of this node's certificate
	Clock    Clock      `json:"clock"`
	Networks []Network  `json:"networks"`
	Peers    []Peer     `json:"peers"`
	Problems []Problem  `json:"problems"`
	// Warnings are worth knowing, but nothing is wrong with them: State does not
	// depend on them.
	Warnings []Problem `json:"warnings"`
	// Heartbeat is when the newest sign of life of an issuer was made; zero: none
	// is known.
	Heartbeat time.Time `json:"heartbeat,omitzero"`
	Protocol  Protocol  `json:"protocol"`
}

// KeySummary is what Status says about keys; KeyStatus says the rest.
type KeySummary struct {
	Target ids.Epoch `json:"target"` // epoch of the cluster; 0: not known yet
	// Started is when this node made its device of Status.Epoch: the age of
	// its newest keys. Zero: it has none, or does not remember.
	Started      time.Time `json:"started,omitzero"`
	NextRotation time.Time `json:"next_rotation,omitzero"` // zero: not scheduled
	// OnTarget counts the peers that this node sends to on the target epoch,
	// of those with which it wants a tunnel.
	OnTarget Count  `json:"on_target"`
	Blocked  string `json:"blocked,omitempty"` // why this node does not start the target epoch
}

// Clock is what this node knows about its system clock.
type Clock struct {
	// Trusted is a time that has certainly come: what the cluster has signed, and
	// this node has run since. Zero: not known.
	Trusted time.Time `json:"trusted,omitzero"`
	Behind  Duration  `json:"behind"` // by how much the system clock is behind Trusted; 0: it is not, within crypto.clock_tolerance
	// Jumped is by how much the system clock was put forward (back if negative)
	// while the agent ran, or was wrong when it started; 0 again when it is
	// right, or has run on for an hour.
	Jumped Duration `json:"jumped"`
	Ahead  Duration `json:"ahead"`  // of the clocks of most other nodes, to about a second; negative: behind them
	Others int      `json:"others"` // how many nodes have said what theirs show
}

// NodeRef names a node: ID for programs, name for people.
type NodeRef struct {
	ID   ids.NodeID `json:"id"`
	Name string     `json:"name"`
}

// Count is a part of a total, for example peers connected of peers known.
type Count struct {
	OK    int `json:"ok"`
	Total int `json:"total"`
}

// Driver is the tunnel driver that the agent chose.
type Driver struct {
	Name    string    `json:"name"`  // empty if no network is encrypted or none works
	Label   string    `json:"label"` // for people: "wireguard (kernel)"
	Refused []Refusal `json:"refused,omitempty"`
}

// Refusal is a driver that was passed over.
type Refusal struct {
	Name   string `json:"name"`
	Reason string `json:"reason"` // names the missing feature
}

// Codes of alarms about cluster items. They are codes of events, too.
const (
	// CodeStale: no issuer is heard (a warning), or what one has does not come
	// here (a problem).
	CodeStale = "stale"
	// CodeConflict: two items with one version.
	CodeConflict = "item-conflict"
)

// Problem is something wrong and what to do about it.
type Problem struct {
	Code    string `json:"code"`              // stable word for programs, such as "peer-down"
	Subject string `json:"subject,omitempty"` // the network, peer or device it is about
	Message string `json:"message"`           // what is wrong and why
	Fix     string `json:"fix,omitempty"`     // the command or edit that fixes it
}

// PlaintextLabel is Network.Driver of a network that is not encrypted.
const PlaintextLabel = "none: PLAINTEXT"

// Network is one overlay network as this node sees it.
type Network struct {
	Name      string         `json:"name"`
	VNI       ids.VNI        `json:"vni"`
	Subnets   []netip.Prefix `json:"subnets"`
	Encrypted bool           `json:"encrypted"`
	State     State          `json:"state"`
	// Driver is what carries the network, for people: "wireguard (kernel)",
	// "wireguard (userspace)", or PlaintextLabel.
	Driver  string `json:"driver"`
	MTU     int    `json:"mtu"`      // bytes of IP packet
	MTUFrom string `json:"mtu_from"` // "config" or what it was derived from
	// EndpointsHere counts endpoints on this node, EndpointsTotal on all.
	EndpointsHere  int            `json:"endpoints_here"`
	EndpointsTotal int            `json:"endpoints_total"`
	Peers          Count          `json:"peers"` // other nodes on the network: connected of known
	Blocks         []netip.Prefix `json:"blocks,omitempty"`
	Conflicts      []Conflict     `json:"conflicts,omitempty"`
	InFile         bool           `json:"in_file"` // this node's configuration defines it
	Cluster        bool           `json:"cluster"` // the cluster defines it: network create
	// Change is there while nodes do not have it yet as the cluster says.
	Change     *NetworkChange     `json:"change,omitempty"`
	Definition *NetworkDefinition `json:"definition,omitempty"` // the cluster's
	netdef.Options
	Labels []string `json:"labels,omitempty"`
}

// NetworkChange is how far a change between encrypted and plaintext has come.
type NetworkChange struct {
	Encrypted bool          `json:"encrypted"` // what it is to be
	Migrate   bool          `json:"migrate"`   // nodes have both forms until all send by the new one
	Nodes     Count         `json:"nodes"`     // that have the network: followed of all
	Waiting   []NetworkWait `json:"waiting"`
}

// NetworkWait is a node that has not followed.
type NetworkWait struct {
	RevocationWait
	Form string `json:"form"` // what it says that it has: plaintext, encrypted, both
}

// NetworkDefinition is what the cluster says about a network, besides Network.
type NetworkDefinition struct {
	Encrypted  bool   `json:"encrypted"`
	Moving     bool   `json:"moving"`
	Driver     string `json:"driver"`
	MTU        int    `json:"mtu"` // 0: what the underlay leaves
	VXLANPort  uint16 `json:"vxlan_port"`
	Generation uint32 `json:"generation"`
}

// Conflict is a node whose definition of a network differs: the two do not
// connect it.
type Conflict struct {
	Peer   NodeRef `json:"peer"`
	Field  string  `json:"field"` // "vni", "subnets", "encrypted", "vxlan_port"
	Here   string  `json:"here"`
	There  string  `json:"there"`
	Reason string  `json:"reason,omitempty"`
}

// Peer is another node with which this one shares a network or the cluster.
type Peer struct {
	NodeRef
	// Gossip is what membership believes: alive, indirect, suspect, dead, unknown. It
	// is advice: keys and forwarding do not depend on it.
	Gossip   string         `json:"gossip"`
	Underlay netip.AddrPort `json:"underlay,omitzero"` // address in use
	// Tunnel is "up" (a handshake not older than 3 minutes), "waiting" (a
	// device but no recent handshake), or "none" (no encrypted network shared).
	Tunnel        string    `json:"tunnel"`
	Driver        string    `json:"driver,omitempty"`
	LastHandshake time.Time `json:"last_handshake,omitzero"`
	RxBytes       uint64    `json:"rx_bytes"`
	TxBytes       uint64    `json:"tx_bytes"`
	InnerMTU      int       `json:"inner_mtu,omitempty"` // bytes a packet inside the tunnel may have
	Epoch         ids.Epoch `json:"epoch,omitempty"`     // that this node sends on; 0: none
	PQ            bool      `json:"pq"`                  // its keys hold against a quantum computer, too
	Networks      []string  `json:"networks,omitempty"`  // shared networks
	Expires       time.Time `json:"expires,omitzero"`    // end of its certificate
}

// Values of Peer.Tunnel.
const (
	TunnelUp      = "up"
	TunnelWaiting = "waiting"
	TunnelNone    = "none"
)

// Member is a node of the cluster, this one included.
type Member struct {
	NodeRef
	Self     bool             `json:"self"`
	State    string           `json:"state"`  // alive, indirect, suspect, dead, unknown: advisory; left: it has signed that
	Synced   bool             `json:"synced"` // its last digest equals ours
	Addr     netip.AddrPort   `json:"addr,omitzero"`
	Underlay []netip.AddrPort `json:"underlay,omitempty"` // from its signed record
	Inner    netip.Addr       `json:"inner"`
	Drivers  []string         `json:"drivers,omitempty"` // wire protocols it offers
	Networks []string         `json:"networks,omitempty"`
	LastSeen time.Time        `json:"last_seen,omitzero"`
	Expires  time.Time        `json:"expires,omitzero"` // of its certificate
	Role     string           `json:"role,omitempty"`   // RoleObserver; empty: a full member
	Left     time.Time        `json:"left,omitzero"`    // when it left, as it said
}

// RoleObserver is the role of a node that takes part in gossip and in nothing
// else: no other node has a network with it.
const RoleObserver = "observer"

// Endpoint is an attachment of a network namespace to a network. Fields
// below Node are known only for endpoints of the answering node.
type Endpoint struct {
	ID        string         `json:"id,omitempty"` // 12 hexadecimal characters; empty for other nodes' endpoints
	Network   string         `json:"network"`
	Node      NodeRef        `json:"node"`
	Local     bool           `json:"local"`
	Addresses []netip.Prefix `json:"addresses"` // with the subnet's length
	MAC       ids.MAC        `json:"mac"`
	Netns     string         `json:"netns,omitempty"`
	Ifname    string         `json:"ifname,omitempty"`
	MTU       int            `json:"mtu,omitempty"`
	State     State          `json:"state"`
	Problem   string         `json:"problem,omitempty"`
	// Name and Services are labels in the domain NETWORK.overlay.
	Name          string       `json:"name,omitempty"`
	Services      []string     `json:"services,omitempty"`
	DefaultRoutes []netip.Addr `json:"default_routes,omitempty"` // gateways
	Resolvers     []netip.Addr `json:"resolvers,omitempty"`      // that know these names
}

// AttachRequest plugs a network namespace into a network. Exactly one of
// Netns and PID is set. Addresses left empty are allocated by the agent, one
// for each subnet; an explicit address must lie in a subnet of the network.
type AttachRequest struct {
	Network   string       `json:"network"`
	Netns     string       `json:"netns,omitempty"` // path of the namespace
	PID       int          `json:"pid,omitempty"`   // process inside it, in the agent's PID namespace
	Host      bool         `json:"host,omitempty"`  // the host itself, instead of Netns and PID
	Addresses []netip.Addr `json:"addresses,omitempty"`
	Ifname    string       `json:"ifname,omitempty"` // default: eth0, or the next free ethN; of the host so- and the network's name
	MAC       ids.MAC      `json:"mac,omitzero"`     // default: it follows from network and address
	// Name and Services are labels in the domain NETWORK.overlay. The name's default is
	// that of the namespace in /run/netns, the node's of the host, else the ID.
	Name         string   `json:"name,omitempty"`
	Services     []string `json:"services,omitempty"`
	DefaultRoute bool     `json:"default_route,omitempty"` // to beyond the overlay, by this node
}

// Token is a join token as the issuer remembers it. ID is public; the secret
// is not here.
type Token struct {
	ID      string     `json:"id"`
	Created time.Time  `json:"created"`
	Expires time.Time  `json:"expires"`
	State   TokenState `json:"state"`
	Limit   int        `json:"limit"` // how many nodes it can admit
	// Whom it admits: names that match a pattern, from these networks, when
	// somebody approves it. Empty, none, false: no condition.
	Hostname string         `json:"hostname,omitempty"`
	Sources  []netip.Prefix `json:"sources,omitempty"`
	Approve  bool           `json:"approve"`
	Role     string         `json:"role,omitempty"` // of the nodes that it admits
	Uses     []TokenUse     `json:"uses"`           // nodes that it admitted, oldest first
	Waiting  []TokenWait    `json:"waiting"`        // nodes that wait for approval, oldest first
}

// TokenUse is a node that a token admitted.
type TokenUse struct {
	NodeRef
	At time.Time `json:"at"`
}

// TokenWait is a node that waits until its join is approved.
type TokenWait struct {
	NodeRef
	From  netip.Addr `json:"from"` // address that it asked from
	Since time.Time  `json:"since"`
}

func (t Token) complete() Token {
	t.Uses, t.Waiting = some(t.Uses), some(t.Waiting)
	return t
}

// JoinDecision approves or denies the join of a node that waits.
type JoinDecision struct {
	// Node is its name, its ID, or the beginning of its ID; empty: the only one
	// that waits.
	Node    string `json:"node,omitempty"`
	Approve bool   `json:"approve"` // false: denied
}

// TokenState says whether a token can still admit a node.
type TokenState string

// The token states.
const (
	TokenOpen    TokenState = "open"
	TokenUsed    TokenState = "used"
	TokenExpired TokenState = "expired"
	TokenRevoked TokenState = "revoked"
)

// TokenRequest asks for a new join token.
type TokenRequest struct {
	TTL   Duration `json:"ttl,omitempty"`   // lifetime; zero: one hour
	Seeds []string `json:"seeds,omitempty"` // address:port a joiner can reach; empty: this node's own

	Uses     int            `json:"uses,omitempty"`     // how many nodes it can admit; 0: one
	Hostname string         `json:"hostname,omitempty"` // pattern of their names, such as web-*; empty: any
	Sources  []netip.Prefix `json:"sources,omitempty"`  // where they come from; none: anywhere
	Approve  bool           `json:"approve,omitempty"`  // each of them waits for approval
	Role     string         `json:"role,omitempty"`     // RoleObserver; empty: full members
}

// NewToken is the answer to TokenRequest. Text is the token itself, shown
// once and stored nowhere: whoever has it can join one node to the cluster.
// It is a plain string on purpose, so that no secret type is reachable from
// an api type; it must not be logged.
type NewToken struct {
	Schema int `json:"schema"`
	Token
	Text string `json:"token"`
}

// DownRequest asks the agent to remove everything it made, then to exit.
type DownRequest struct{}

// DownResult says what was removed: one line per kernel object or process.
type DownResult struct {
	Schema  int      `json:"schema"`
	Removed []string `json:"removed"`
}
