// Package wg is what the two WireGuard drivers share.
//
// It owns Plan, the pure difference between the peers a device should have
// and those it has; Driver, which finds this agent's devices by their marks,
// makes missing ones and applies plans; and the borders to wgtypes. What
// differs between kernel and user space is behind Maker.
//
// It does not own how a device comes to be or ends: that is wgkernel's and
// wguser's.
//
// Invariants: an unchanged peer is never touched and the peer list is never
// replaced, since both drop sessions; but a peer whose preshared key is another
// than the wanted one is made anew. A peer's only allowed address is its inner
// address. A private key lives in this package only between reading the random
// source and handing it to the device; preshared keys are cleared as soon as
// they have been named or handed over, and leave no copies.
//
// Start with Plan and Driver.Set.
package wg
