// Package metrics shows the agent to Prometheus.
//
// It owns the names of the metrics, their text, and the optional listener on
// a loopback address. What it shows it asks of api.Observer and api.Keys at
// each scrape; it keeps no numbers of its own.
//
// Invariants: no metric names an address, a key or a fingerprint of one; the
// number of series is bounded by peers and networks; nothing can be changed
// through the listener, which does not know who asks.
//
// It is not part of package api because clients of the agent, such as
// plugins, have no use for the Prometheus library. Start with Exporter.
package metrics
