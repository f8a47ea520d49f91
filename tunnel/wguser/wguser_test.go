package wguser_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/secure-overlay/secure-overlay/tunnel/tunneltest"
	"github.com/secure-overlay/secure-overlay/tunnel/wguser"
)

// The test binary is also the worker, and the agent that dies, if its first
// argument says so.
const (
	workerWord = "worker"
	agentWord  = "agent"
)

func TestMain(m *testing.M) {
	other := map[string]func([]string) error{
		workerWord: func(args []string) error { return wguser.RunWorker(context.Background(), args) },
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

func options() wguser.Options {
	return wguser.Options{Worker: []string{"/proc/self/exe", workerWord}}
}

func TestConformance(t *testing.T) {
	tunneltest.Run(t, tunneltest.Harness{
		Kind:      wguser.Kind(options()),
		Hosts:     tunneltest.Namespaces,
		Leftovers: leftovers,
	})
}

// leftovers lists workers, zombies, control sockets and log files.
func leftovers(hosts []*tunneltest.Host) ([]string, error) {
	return tunneltest.WorkersLeft(hosts, func(h *tunneltest.Host) string { return "/var/run/wireguard/so" + h.Env.Node.Short() + "*" })
}
