// Package api is how programs talk to the agent on the same machine: JSON
// over HTTP on a unix socket.
//
// It owns the types of every answer and request (schema version 1), the
// server with its permission check, the client, and the error codes with the
// exit codes that they mean. It does not own any behaviour: the agent
// implements the small interfaces Observer, Attacher, Tokens, Lifecycle,
// Keys and Events.
//
// Invariants: a call that changes something is refused unless the kernel says
// (SO_PEERCRED) that the caller is root or the user the agent runs as and is in
// the agent's PID namespace, which keeps containers out, and
// the check stands in the operation itself. Bodies are bounded and unknown
// fields are errors. No type here reaches a secret type; the one secret that
// crosses, a new join token, is a string in NewToken and in nothing else.
//
// Start with Status, Server and Client.
package api
