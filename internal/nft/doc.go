// Package nft holds what the agent's nftables tables have in common: chains with
// their rules as values, the expressions that they are made of, and the comparison of
// what should be with what the kernel has, so that a table that somebody else changed
// or flushed is found and made anew.
//
// It owns no table, opens no connection, and decides nothing about packets: packages
// tunnel/secure and vxlan/gateway do.
//
// Start with Chain and Matches.
package nft
