// Command bench measures how fast the product is beside its parts.
//
//	go run ./test/bench throughput [-rounds 5] [-seconds 2] [-mtu 1500] [-peers nebula,tailscale,tinc] [-only NAME]
//	go run ./test/bench rotate [-real 3] [-simulated 3,10,50] [-rounds 5] [-o json]
//	go run ./test/bench control [-nodes 3,10,50] [-profile lan] [-samples 50] [-remotes 2000] [-memory 0,1000,10000] [-o json]
//
// It owns the set-ups and the tables; hosts are test/netlab's, agents
// test/fleet's. It asserts nothing: the machines are shared and noisy, so
// variants run alternately in one go and are compared by the ratios of their
// medians.
//
// throughput has one TCP stream and four beside each other, UDP packets with 64 bytes of payload from one
// sender that sends as fast as it can (so most are lost where less gets through), and pings on the idle
// path. Seconds per Gbit are of all processors, for both ends and whatever else
// the machine does, such as the agents. MiB are what the processes on a host have, agents included.
// Peers are built from their modules (go install), or used if they are installed; one that cannot be had is
// left out, and said so. All of them run in sessions of their own, as services do and ours does: Linux shares the
// processors out between sessions first, so a program in the session of whoever sends has more of them, or less.
//
// rotate shows, for each driver that works on this machine, when the last pair
// left each step of a rotation. Rows called real are agents as processes that
// share this machine; their phases are as exact as they are asked, 10 ms.
// Rows called simulated are the product's own machines (keys/rotate), one
// for each node, in made-up time; what surrounds them is a model. In the model
// each node is alone on its host. Making and removing a device, adding peers,
// reading state and moving routes cost what they cost with the real driver and 50
// peers in the same run; spread of records and agreements cost what fits the
// first real fleet; packets are never lost. The simulated row with as many nodes
// as a real one shows how good the model is.
//
// control has real agents only, which share this machine. An attach is timed from the
// start of the command to the first answered ping from another node, which is sent each
// 5 ms; entries are set from nothing, by iproute2's batch mode and by ours. Memory is that
// of one real agent: the endpoints are in the signed records of members that have no
// data plane, three for 10,000, each with an IPv4 and an IPv6 address, and the agent's kernel has an
// entry for each.
//
// Start with main.
package main
