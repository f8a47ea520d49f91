package espuser_test

import (
	"context"
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/secure-overlay/secure-overlay/tunnel/espuser"
	"github.com/secure-overlay/secure-overlay/tunnel/ipsec"
	"github.com/secure-overlay/secure-overlay/tunnel/tunneltest"
)

// The test binary is also a worker, if its first argument says so.
const (
	workerWord = "worker"
	holderWord = "holder" // of the kernel's ESP in UDP
)

func TestMain(m *testing.M) {
	other := map[string]func(context.Context, []string) error{workerWord: espuser.RunWorker, holderWord: ipsec.RunHolder}
	if len(os.Args) > 1 && other[os.Args[1]] != nil {
		if err := other[os.Args[1]](context.Background(), os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}

func options() espuser.Options {
	return espuser.Options{Worker: []string{"/proc/self/exe", workerWord}}
}

func TestConformance(t *testing.T) {
	tunneltest.Run(t, tunneltest.Harness{
		Kind: espuser.Kind(options()), Hosts: tunneltest.Namespaces, Keyless: true, InUDP: true, Marks: true, Leftovers: leftovers,
	})
}

// leftovers lists workers, zombies, control sockets and log files.
func leftovers(hosts []*tunneltest.Host) ([]string, error) { return tunneltest.WorkersLeft(hosts, nil) }
