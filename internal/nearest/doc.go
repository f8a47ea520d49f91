// Package nearest finds what a person probably meant: the valid word closest
// to one that was misspelt.
//
// It owns the measure and the threshold and nothing else, and imports nothing
// of this module. Its invariant: a suggestion is always one of the choices.
// Start with Of.
package nearest
