// Package protocol compares the test vectors in PROTOCOL.md with the code, so
// that the document cannot go stale.
//
// It owns the form of the vectors in the document and the comparison. The
// values come from the tests of the packages that encode them: each calls Check
// with what its code makes of the inputs.
//
// Invariants: it imports no other package of this module, so any of them may
// use it in its tests. Every block in the document is checked by some test, and
// every line of a block by that test.
//
// Start with Check.
package protocol
