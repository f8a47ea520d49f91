// Package resolver answers questions for names (DNS, RFC 1035) that endpoints
// ask at the gateway addresses of their overlay networks.
//
// It owns: the sockets at those addresses, the names of each network, the
// decision what is answered here and what is forwarded, and the exchange with
// the host's resolvers. It does not own the namespace that has the addresses
// (Options.Listen opens sockets there), what a name stands for (the agent says
// so with Set), or a cache: every question that is not about an overlay
// network is asked again.
//
// Invariants: a name that can only mean something in an overlay network (of a
// single label, below "overlay.", or the reverse of an overlay address) never
// leaves the node, whether it is known or not. A network answers only its
// own endpoints, and only about itself. What a client or a resolver sends can
// neither grow memory nor start goroutines beyond the numbers in bounds.go. No
// question is sent to a resolver that lies in an overlay network, because it could
// be this one. Names appear in no log line above debug.
//
// Start with table.respond, which is pure: a packet in, and out of it an
// answer, a question to forward, or nothing. Server.Set is what the agent
// calls, and serve.go what runs meanwhile.
package resolver
