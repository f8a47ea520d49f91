// Package gso splits and joins TCP and UDP packets inside VXLAN (RFC 7348), as the
// kernel's segmentation and receive offload do (GSO, GRO): a process that carries VXLAN
// then exchanges packets of up to 64 KiB with a TUN link, and what is on the wire
// has its ordinary size.
//
// It owns the virtio-net header that describes such a packet to the kernel, the
// Segmenter and the Coalescer. It opens nothing and knows no link, no cipher and no peer.
//
// Invariants: what Segmenter returns are the packets that the kernel's software
// segmentation would have sent, byte for byte (TestSegmentsAreTheKernels). The
// Coalescer joins only packets whose checksums are right and whose headers
// differ in nothing but lengths, positions and checksums, so that splitting
// the joined packet gives the same TCP segments again; all else passes as it is.
// Segments of one connection keep their order, but for IP fragments and IPv6 extension
// headers, which nobody looks behind. No input makes them panic or read beyond it.
//
// Start with Segmenter and Coalescer.
package gso
