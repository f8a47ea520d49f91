// Package gso splits TCP and UDP packets inside VXLAN (RFC 7348), and joins VXLAN datagrams,
// so that a process exchanges packets of up to 64 KiB with a link, and what is on the wire has
// its ordinary size (GSO).
//
// It owns the virtio-net header that describes such a packet to a packet socket (packet(7),
// PACKET_VNET_HDR), the Segmenter and the Coalescer. It opens nothing and knows no link, no
// cipher and no peer.
//
// Invariants: what Segmenter returns are the packets that the kernel's software
// segmentation would have sent, byte for byte (tunnel/internal/tun, TestSegmentsAreTheKernels).
// The Coalescer joins only datagrams whose checksum is right and whose headers, VXLAN's
// among them, differ in nothing but lengths and checksum, so that splitting the joined
// packet gives the same datagrams again; all else passes as it is. Datagrams of one flow keep
// their order. No input makes them panic or read beyond it.
//
// Start with Segmenter and Coalescer.
package gso
