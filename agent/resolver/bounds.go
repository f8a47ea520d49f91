package resolver

import "time"

const (
	port = 53 // RFC 1035, 4.2
	ttl  = 5  // seconds; also of negative answers (RFC 2308): an endpoint may come at any time

	// maxQuestion is the largest packet that is read from a client, in bytes. A
	// name has at most 255; the rest is room for options.
	maxQuestion = 4096
	// udpSize is the largest UDP message that is sent, or asked for, in bytes: it fits
	// the IPv6 minimum MTU of 1280 (dnsflagday.net, 2020), so nothing is fragmented.
	udpSize = 1232

	maxForwards = 64 // questions of a network that wait for the host's resolvers, over UDP and TCP together
	maxStreams  = 64 // TCP connections of a network's endpoints
	// maxQueue is how many answers of one socket wait to be sent over UDP: more than the
	// questions that a receive buffer of the default size holds.
	maxQueue = 512
	// maxAsked is how many questions one TCP connection may ask, so that it cannot
	// hold its place for ever.
	maxAsked = 128

	idleTimeout  = 10 * time.Second // of a TCP connection, for a whole question (RFC 7766, 6.2.3: a few seconds)
	writeTimeout = 2 * time.Second  // of an answer over TCP

	// An attempt that is lost is made again, with the next resolver if there is one.
	// All together end before a client's own timeout of 5 s (resolv.conf(5)),
	// so that it hears of the failure. An attempt whose UDP answer was cut has as long
	// again for TCP: three of those end later.
	attempts       = 3
	attemptTimeout = 1500 * time.Millisecond
)
