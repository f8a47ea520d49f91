package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/tunnel/wguser"
)

const usage = `usage: bench COMMAND

  throughput   TCP and small packets through raw veth, plain VXLAN, others alone and ours
  rotate       phases of a key rotation by driver and number of nodes
  control      attach to first ping, spread of a network, entries per second, memory
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if dir := os.Getenv(memberEnv); dir != "" {
		return member(ctx, dir, os.Stdin)
	}
	if len(args) == 0 {
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
	}
	switch args[0] {
	case "throughput":
		return throughput(ctx, args[1:])
	case "rotate":
		return rotateBench(ctx, args[1:], os.Stdout)
	case "control":
		return controlBench(ctx, args[1:], os.Stdout)
	case "worker": // of the userspace driver
		return wguser.RunWorker(context.Background(), args[1:])
	case "wireguard-go": // the worker of a set-up, see wireguardgo.go
		return wireguardGo(ctx, args[1:])
	default:
		fmt.Fprint(os.Stderr, usage)
		os.Exit(2)
		return nil
	}
}
