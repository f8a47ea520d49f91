// Package wgkernel is the tunnel driver for WireGuard in the kernel.
//
// It owns the creation of links of type wireguard: born from the host
// namespace, so that their UDP sockets stay there, and living in the secure
// namespace. What peers they get is decided in tunnel/internal/wg, which both
// WireGuard drivers share.
//
// Invariants: nothing is left in the host namespace, at no time does a
// wireguard link show there; the private key is made here and is read by
// nobody but the kernel.
//
// Start with Kind.
package wgkernel
