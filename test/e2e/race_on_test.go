//go:build race

package e2e

// raceFlag makes the program under test watch for data races like its tests.
const raceFlag = "-race=true"

// raceDetector tells that everything is several times slower.
const raceDetector = true
