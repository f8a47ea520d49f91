// Package wire reads the fields of records, items and messages, front to back.
//
// It owns: taking big-endian numbers, byte strings and counts off the front of
// a byte string, with every length checked, and keeping the first failure. It
// owns no format: which field follows which, and what it may say, is decided
// where the format is.
//
// Invariants: nothing beyond the input is read; after a failure every read
// returns zero, so a parser checks once per group of fields; reading allocates
// nothing, what it returns aliases the input, and a list is bounded by Count
// before its parser makes room for it.
//
// Start with Reader.
package wire
