// Package ipam decides which node may hand out the addresses of which block.
//
// It owns the rules by which a block has one owner at a time: who votes, what a
// node promises and when a promise is void, when a claim is settled, and the
// messages CLAIM carries (PROTOCOL.md, 13.5). It does not own clocks, sockets,
// disks, or which block a node wants: those are the agent's. Everything here is
// values and pure functions, so a model runs the same code (model_test.go).
//
// Always holds, while members join and leave one at a time (agent/DESIGN.md,
// Addresses): no two members have settled one block.
//
// Start with Ledger, then Serve, then Claims.
package ipam
