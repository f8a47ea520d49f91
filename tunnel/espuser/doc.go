// Package espuser is the tunnel driver for ESP in user space: IPsec ESP in UDP (RFC 4303,
// RFC 3948) by a worker process of its own, one for each device. On the wire it is the
// kernel's ESP in UDP, so nodes with it and nodes with tunnel/ipsec are peers.
//
// It owns the worker: its link, its UDP sockets, its associations, and how the driver tells
// it what to have. The packets' format is in tunnel/internal/esp, how they cross the link in
// tunnel/internal/tun, how a worker is found and ended in tunnel/internal/worker.
//
// Invariants: the worker outlives the agent and drops no packet when the agent dies. Its
// link is in the secure namespace, its UDP sockets are in the host's, and nothing goes from
// one to the other that was not sealed, or opened for the peer that it says to be from. An
// association is installed once in the life of a worker; keys are in no other process and
// end with it, which is when their epoch ends. A worker ends when its link goes, or on
// SIGTERM, and its link goes with it.
//
// Start with Kind and RunWorker; DESIGN.md has the reasons.
package espuser
