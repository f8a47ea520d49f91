// Package agent joins the parts: it computes what this node's tunnels and
// overlay networks must look like and makes the kernel so.
//
// It owns: the pure function Desired (configuration, members' signed records,
// local attachments and kernel facts in; driver specs and the node's own
// record out), the address allocation, and the one loop that observes,
// computes and applies. It does not own how a tunnel or a VXLAN device is
// made (tunnel, vxlan), nor who is a member (membership).
//
// Invariants: one goroutine owns all state and is the only one that touches
// the data plane. The loop is level-triggered: each round computes the
// complete state, so a lost event costs at most one second. What gossip
// believes about a member being alive never enters Desired. An encrypted
// network is never carried by anything but a tunnel: where the driver, the
// peer or the definition does not fit, the network is not connected, and the
// status says why. Nothing is pruned before the members' records are known.
// Ending the agent leaves the data plane as it is; only Down and Teardown
// remove it.
//
// Start with Desired (pure), then Agent.Run and loop.turn.
package agent
