//go:build !race

package ipam

// slowness: see race_on_test.go.
const slowness = 1
