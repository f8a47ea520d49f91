// Package house holds the rules of the house (CONTRIBUTING.md) that a machine
// can check, each as a function from source code to a list of violations.
//
// It owns: the reading of the source tree, the rules, and a bad example for
// each of them under testdata, so that a rule that can no longer fail is found.
//
// It does not own what go vet, gofmt and golangci-lint check already.
//
// Invariants: a rule reads only the tree it is given; a violation names file and
// line; there is no list of exceptions inside the checked code.
//
// Start with Rules for what needs only the syntax, TypedRules for what needs
// types, and TestHouse, which applies both to this module.
package house
