// Package wguser is the tunnel driver for WireGuard in user space:
// wireguard-go in a worker process of its own, one for each device.
//
// It owns the worker: how it is started, what it opens in which namespace,
// how it says that it is ready, how it is found again by the next agent and
// how it ends. What peers a device gets is decided in tunnel/internal/wg,
// which both WireGuard drivers share.
//
// Invariants: the worker outlives the agent and drops no packet when the
// agent dies. Its link is in the secure namespace, its UDP sockets are in the
// host's. Nothing merges VXLAN datagrams as datagrams (package tun). It ends when its
// link or its control socket goes, or on SIGTERM, and its link goes with it: there is
// never one without the other for longer than it takes.
//
// Start with Kind and RunWorker; DESIGN.md has the reasons.
package wguser
