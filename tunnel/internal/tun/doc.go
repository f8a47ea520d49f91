// Package tun is a TUN link of a tunnel device: how packets enter and leave a worker
// process.
//
// It owns the link, its queue and its MTU, and the two forms in which packets cross it:
// segmented, up to 64 KiB at a time with package gso, on Linux 6.17 and later, and single,
// one by one. It knows no cipher and no peer.
//
// Invariants: the link is in the namespace that it was opened for, and lives as long as
// the Link. Nothing merges VXLAN datagrams as datagrams: what crosses the link as one
// packet is segments of one TCP connection or datagrams of one flow inside VXLAN (segmented), or
// one packet (single).
//
// Start with Open. tunnel/wguser/DESIGN.md has the reasons for the two forms.
package tun
