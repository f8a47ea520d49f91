// Package noisenet carries everything that members of a cluster say to each
// other: gossip packets, gossip streams and control requests, all inside Noise
// on one TCP and one UDP port.
//
// It owns the handshakes, the key schedule, the frame and datagram formats,
// the limits that protect a node from strangers, the sessions with each peer,
// the exchange that gives two nodes a secret for a tunnel, and the join
// exchange between a newcomer and an issuer. It does not own the meaning of what
// it carries, the signature rules (package keys), who is a member (package
// membership), or what becomes of a tunnel secret.
//
// Invariants: no byte of a peer reaches memberlist, the Handler or Admission
// before its certificate chain was verified and bound to its Noise key; no
// handshake runs on UDP, so there is nothing to flood with, spoof or amplify;
// every queue, table and buffer that a peer can fill has a limit; memberlist
// sees virtual addresses only, derived from node IDs.
//
// Layers, each pure one with its error contract in its type's comment:
// header, payload (bytes) - handshake, joinHandshake (Noise, no I/O), hybrid
// (ML-KEM, no I/O) - schedule (HKDF) - record (stream frames), datagram, replay
// (no I/O) - sessions (which datagram session to use, no I/O) - secureConn,
// control, agree, Transport (sockets). PROTOCOL.md has every format, state and timer, DESIGN.md
// the reasons.
//
// Start with Transport, then handshake.
package noisenet
