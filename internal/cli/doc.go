// Package cli is how commands show things: tables for people, JSON, JSON
// lines and YAML for programs, and the staged checklist of long work.
//
// It owns formats, column layout, colour and the words for durations and
// sizes. It knows nothing of networks or agents and imports nothing of this
// module.
//
// Invariants: colour, cursor movement and spinners go to terminals only, and
// never when NO_COLOR is set; text that came from other machines is shown
// without its control characters.
//
// Start with Format and Table.
package cli
