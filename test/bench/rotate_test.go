package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/secure-overlay/secure-overlay/test/netlab"
	"github.com/secure-overlay/secure-overlay/tunnel/wguser"
)

// TestMain lets the test binary be the userspace worker and a member, as the program is.
func TestMain(m *testing.M) {
	if dir := os.Getenv(memberEnv); dir != "" {
		if err := member(context.Background(), dir, os.Stdin); err != nil {
			fmt.Fprintln(os.Stderr, "member:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		if err := wguser.RunWorker(context.Background(), os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// rotationsEnv is set where the full measurement is wanted, as in test/e2e.
const rotationsEnv = "SECURE_OVERLAY_TEST_ROTATIONS"

// TestRotateBench runs the command: small, so that it does not rot, or, where a
// number of rotations was asked for, with every driver of this machine in full,
// which is how kernel drivers are measured, in the virtual machine.
func TestRotateBench(t *testing.T) {
	netlab.Require(t, netlab.FeatureNetns)
	args := []string{"-real", "2", "-simulated", "3", "-rounds", "1", "-drivers", "userspace"}
	want := []string{"userspace"}
	if os.Getenv(rotationsEnv) != "" {
		netlab.Require(t, netlab.FeatureWireGuard)
		netlab.Require(t, netlab.FeatureXfrm)
		want = []string{"wireguard", "userspace", "ipsec"}
		args = []string{"-real", "3", "-rounds", "5", "-drivers", strings.Join(want, ",")}
	}
	var out bytes.Buffer
	if err := rotateBench(t.Context(), append(args, "-o", "json"), &out); err != nil {
		t.Fatal(err)
	}
	var rows []rotationRow
	if err := json.Unmarshal(out.Bytes(), &rows); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	printRotations(&out, rows)
	t.Logf("\n%s", out.String())
	for _, driver := range want {
		real, simulated := false, false
		for _, r := range rows {
			if r.Driver != driver {
				continue
			}
			real, simulated = real || !r.Simulated, simulated || r.Simulated
			if r.All <= 0 || len(r.Left) != len(steps()) {
				t.Errorf("%s, %d nodes: %+v", r.Driver, r.Nodes, r)
			}
		}
		if !real || !simulated {
			t.Errorf("%s: measured %v, simulated %v", driver, real, simulated)
		}
	}
	if err := rotateBench(t.Context(), []string{"-drivers", "pigeon"}, &out); err == nil {
		t.Error("a driver that does not exist is measured")
	}
}
