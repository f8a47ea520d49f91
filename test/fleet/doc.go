// Package fleet runs whole agents, as the real program in processes of their
// own, on the hosts of a netlab.Lab.
//
// It owns: writing each node's config file, calling the same commands an
// operator would (init, token create, join, up, attach, down), waiting until
// nodes see each other, and ending everything. The end-to-end tests, the
// benchmarks and the product's `demo` command stand on it.
//
// It does not own namespaces, wires and captures (netlab) nor any judgement
// of what is right: it reports, its callers assert.
//
// Invariants: it knows the program only by its command line and its control
// socket; Close ends every agent and worker it started and removes the lab.
//
// Start with New and Fleet.Start.
package fleet
