package main

import (
	"testing"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/keys/rotate"
)

// Packages that do not know each other say the same.
func TestVocabulary(t *testing.T) {
	if config.DataPorts != rotate.MaxEpochs {
		t.Errorf("%d ports for %d epochs", config.DataPorts, rotate.MaxEpochs)
	}
	steps := []rotate.Step{
		rotate.StepDevice, rotate.StepAgree, rotate.StepReady, rotate.StepProve, rotate.StepProved,
		rotate.StepSwitch, rotate.StepDrain, rotate.StepDone, rotate.StepRefused,
	}
	if len(steps) != len(api.KeySteps()) {
		t.Fatalf("%d steps in the api, %d in the machine", len(api.KeySteps()), len(steps))
	}
	for i, s := range api.KeySteps() {
		if string(s) != string(steps[i]) {
			t.Errorf("step %d is %q in the api and %q in the machine", i, s, steps[i])
		}
	}
	drivers := []string{config.DriverAuto, config.DriverWireGuard, config.DriverUserspace, config.DriverIPsec, config.DriverIPsecUser}
	if len(drivers) != len(api.RotateDrivers()) {
		t.Fatalf("%d drivers in the api, %d in the configuration", len(api.RotateDrivers()), len(drivers))
	}
	for i, d := range api.RotateDrivers() {
		if d != drivers[i] {
			t.Errorf("driver %d is %q in the api and %q in the configuration", i, d, drivers[i])
		}
	}
}
