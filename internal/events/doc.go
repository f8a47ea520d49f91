// Package events keeps the node's event log: what happened to keys and to the
// agent, as lines of JSON in the data directory.
//
// It owns the file, its format, its bound (two files of MaxFile bytes) and the
// numbering of events. It does not know what kinds of events there are, nor
// the clock: both come from the caller.
//
// Invariants: an event that Add accepted is read back until it has been
// rotated out, however the process ended; a torn last line costs that line
// only; numbers grow by one and are never used twice. The log is not flushed
// to the disk event by event: a power cut may cost the last seconds, and
// nothing but people depends on them. There is one writer: whoever holds the
// lock of the data directory (keys/keystore).
//
// Start with Log.
package events
