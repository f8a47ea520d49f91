// Package tun is the link of a tunnel device that a worker process serves: how packets enter
// and leave it.
//
// It owns the link, its queue and its MTU, and the two forms in which packets cross it:
// Pair, a pair of veth links with a packet socket behind it, up to 64 KiB at a time with package
// gso; and Single, a TUN link, one packet at a time. It knows no cipher and no peer.
//
// Invariants: the link is in the namespace that it was opened for, and goes with the Link or
// with the process. The other end of a pair is in a namespace of its own, in which nothing else
// is and of which nobody else knows. Nothing is joined that the kernel cannot take apart again
// before VXLAN sees it (FormFor tries).
//
// Start with Open. tunnel/wguser/DESIGN.md has the reasons for the two forms.
package tun
