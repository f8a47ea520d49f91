// Package xfrm installs, lists and removes ESP security associations and
// policies in the kernel of one namespace.
//
// It owns: the form of the associations that this project makes (tunnel mode,
// AES-256-GCM with a 16-byte tag, extended sequence numbers, a window of 1024),
// the encoding of XFRM's netlink messages, and the reading of what comes back.
//
// It does not own which associations there should be: that is tunnel/ipsec's.
//
// Invariants: key material passes from the caller to the kernel through
// buffers that are cleared, and none of the types here can hold any; reading
// associations one by one and reading policies never brings a key into this
// process. Only States, which has to list everything, makes the kernel send
// keys, and it clears them unread.
//
// Start with State, Policy and Conn.
package xfrm
