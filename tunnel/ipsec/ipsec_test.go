package ipsec_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/secure-overlay/secure-overlay/test/netlab"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/ipsec"
	"github.com/secure-overlay/secure-overlay/tunnel/tunneltest"
)

// The test binary is also the holder, and the agent that is killed, if its
// first argument says so.
const (
	holderWord = "holder"
	agentWord  = "agent"
)

func TestMain(m *testing.M) {
	other := map[string]func([]string) error{
		holderWord: func(args []string) error { return ipsec.RunHolder(context.Background(), args) },
		agentWord:  runAgent,
	}
	if len(os.Args) > 1 && other[os.Args[1]] != nil {
		if err := other[os.Args[1]](os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

// inUDP are the options of ESP in UDP.
func inUDP() ipsec.Options {
	return ipsec.Options{Encap: ipsec.EncapUDP, Worker: []string{"/proc/self/exe", holderWord}}
}

// TestConformance needs a kernel with ESP. Where the machine has none, test/vm
// runs it in a virtual machine.
func TestConformance(t *testing.T) { conformance(t, ipsec.Options{}) }

// pairWise are the options under which pairs choose.
func pairWise() ipsec.Options {
	return ipsec.Options{Encap: ipsec.EncapAuto, Worker: []string{"/proc/self/exe", holderWord}}
}

// TestConformanceInUDP is the same with ESP in UDP.
func TestConformanceInUDP(t *testing.T) { conformance(t, inUDP()) }

func conformance(t *testing.T, o ipsec.Options) {
	netlab.Require(t, netlab.FeatureXfrm)
	tunneltest.Run(t, tunneltest.Harness{
		Kind: ipsec.Kind(o), InUDP: o.Encap == ipsec.EncapUDP, Hosts: tunneltest.Namespaces, Keyless: true, NoPort: true, Marks: true, Leftovers: leftovers, Loosen: loosen,
	})
}

// TestProbe runs on any kernel: it works, or it says what is missing.
func TestProbe(t *testing.T) {
	netlab.Require(t, netlab.FeatureNetns)
	err := ipsec.Kind(ipsec.Options{}).Probe(context.Background(), tunnel.Env{})
	if err == nil {
		return
	}
	var missing *tunnel.UnsupportedError
	if !errors.As(err, &missing) {
		t.Fatalf("probe: %v", err)
	}
	if missing.Driver != ipsec.Name || missing.Feature == "" || missing.Err == nil {
		t.Errorf("probe names %+v", missing)
	}
	t.Log(err)
}
