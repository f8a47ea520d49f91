//go:build !race

package e2e

// raceFlag: see race_on_test.go.
const raceFlag = "-race=false"

// raceDetector: see race_on_test.go.
const raceDetector = false
