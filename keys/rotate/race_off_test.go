//go:build !race

package rotate

// slowness: see race_on_test.go.
const slowness = 1
