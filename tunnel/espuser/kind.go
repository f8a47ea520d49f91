package espuser

import (
	"cmp"
	"context"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/cpu"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/esp"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/links"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/tun"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/worker"
)

// Name is the driver's name in config files and in status.
const Name = "ipsec-userspace"

const protocol = "esp" // Mark.Protocol of the driver's links

// Options say how the driver starts its workers.
type Options struct {
	// Worker is the command that calls RunWorker with the arguments that
	// follow it, for example ["/proc/self/exe", "esp-worker"]. The path
	// /proc/self/exe is this very program even if its file has been replaced.
	Worker []string
	// Patience is how long a worker may take to answer a request before its
	// device counts as broken and is made anew. Zero means 20 s.
	Patience time.Duration
	// Single makes workers exchange one packet at a time with their link, as on a kernel
	// that cannot do more.
	Single bool
}

// Kind returns the driver's row for the table of drivers.
func Kind(o Options) tunnel.Kind {
	return tunnel.Kind{
		Name:   Name,
		Probe:  func(ctx context.Context, _ tunnel.Env) error { return tun.Probe(ctx, Name) },
		Slower: func(ctx context.Context) error { return cmp.Or(slowCipher(), tun.Slower(ctx, Name, o.Single)) },
		Auto:   slowCipher,
		Open: func(_ context.Context, env tunnel.Env) (tunnel.Driver, error) {
			return open(env, o)
		},
		Overhead:   esp.Overhead,
		InUDP:      esp.LongestInUDP,
		Compatible: "esp-udp",
	}
}

// slowCipher says that the processor has no instructions for AES-GCM.
func slowCipher() error {
	has := cpu.X86.HasAES && cpu.X86.HasPCLMULQDQ || cpu.ARM64.HasAES && cpu.ARM64.HasPMULL ||
		cpu.S390X.HasAES && cpu.S390X.HasGHASH || runtime.GOARCH == "ppc64le"
	if has {
		return nil
	}
	return &tunnel.UnsupportedError{Driver: Name, Feature: "AES instructions of the processor, without which it is many times slower,"}
}

func open(env tunnel.Env, o Options) (tunnel.Driver, error) {
	workers, err := worker.OpenFleet(env, worker.Options{Argv: o.Worker, Sockets: env.RuntimeDir, Timeout: o.Patience, Driver: Name, Single: o.Single})
	if err != nil {
		return nil, fmt.Errorf("open driver %s: %w", Name, err)
	}
	secure, err := env.Secure.Handle()
	if err != nil {
		workers.Close()
		return nil, fmt.Errorf("open driver %s: %w", Name, err)
	}
	return &driver{
		env: env, log: env.Log.With(logkey.Driver, Name), secure: secure, workers: workers,
		owner: links.Owner{Node: env.Node, Protocol: protocol, Driver: Name, Type: tun.UnmarkedType},
		used:  map[string]map[use]bool{},
	}, nil
}
