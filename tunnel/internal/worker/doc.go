// Package worker starts processes that outlive the agent, finds them again,
// and ends them.
//
// It owns: starting a worker in the host namespace, waiting until it says that
// it is ready, telling who listens on a worker's unix socket, and ending a
// process without ever meeting another one that got its number later; and of a driver
// with one worker for each device, which of them there are and whether they work (Fleet).
//
// It does not own what a worker does: tunnel/wguser's carries a WireGuard
// device, tunnel/ipsec's holds the sockets of ESP in UDP.
//
// Invariants: nothing is written down about a worker; its socket and its
// command line lead to it. Nothing on a command line is secret.
//
// Start with Fleet, or for a single worker with Command and Find.
package worker
