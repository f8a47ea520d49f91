// Command bench measures how fast the product is beside its parts.
//
//	go run ./test/bench throughput [-rounds 5] [-seconds 2] [-mtu 1500]
//
// It owns the set-ups and the tables; hosts are test/netlab's, agents
// test/fleet's. It asserts nothing: the machines are shared and noisy, so
// variants run alternately in one go and are compared by the ratios of their
// medians. Start with main.
package main
