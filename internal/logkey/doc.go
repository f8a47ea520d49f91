// Package logkey names the attributes of structured log lines, so that one
// thing has one name in every package. It owns the names and nothing else;
// its one invariant is that no two constants share a value. Start with the
// constant list in names.go.
package logkey
