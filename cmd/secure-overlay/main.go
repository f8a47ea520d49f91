package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/secure-overlay/secure-overlay/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// A second signal ends the program at once, should the first not do.
	context.AfterFunc(ctx, stop)
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Environ())
	stop()
	os.Exit(code)
}

// app is what every command needs from its surroundings.
type app struct {
	stdin  io.Reader
	out    cli.Screen // data
	err    cli.Screen // progress, warnings, errors
	env    []string
	global globalFlags
	outErr error // the first failure to write data
}

// run executes one command line and returns the exit code.
func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, env []string) int {
	a := &app{stdin: stdin, out: cli.NewScreen(stdout, env), err: cli.NewScreen(stderr, env), env: env}
	root := a.root()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		err = a.outErr
	}
	return a.report(err)
}
