// Command secure-overlay joins hosts by encrypted layer-2 networks.
//
// It owns the command tree, flags, exit codes and texts, and it wires the
// packages together: config, keystore, agent, api. It owns no behaviour.
// Data goes to stdout, everything else to stderr.
//
// Invariants: `up`, `init` and `join` are the only commands that work without
// an agent and change something (and `down` and `leave`, when none runs); every other one
// asks the agent over its socket. Every error says what, why, and the command
// that fixes it. Exit codes: 0 ok, 1 failed, 2 usage or configuration,
// 3 agent not running, 4 degraded, 5 not found, 6 refused, 7 permission,
// 8 timeout.
//
// Start with root.go; up.go is where the agent is put together.
package main
