package main

import (
	"context"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/tunnel/espuser"
	"github.com/secure-overlay/secure-overlay/tunnel/ipsec"
	"github.com/secure-overlay/secure-overlay/tunnel/wguser"
)

// versionInfo is what `version` prints for programs.
type versionInfo struct {
	Schema  int    `json:"schema"`
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

// version reads what the Go toolchain stamped into the binary.
func version() versionInfo {
	v := versionInfo{Schema: api.Schema, Version: "unknown", Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v
	}
	if info.Main.Version != "" {
		v.Version = info.Main.Version
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			v.Commit = s.Value
		}
	}
	return v
}

func (a *app) versionCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "version", Short: "Print the version", Args: args()}
	format := a.output(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		v := version()
		return a.show(*format, v, nil, func() error {
			a.print("secure-overlay %s %s %s/%s", v.Version, v.Go, v.OS, v.Arch)
			return nil
		})
	}
	return cmd
}

// workerCmd is the process that serves one userspace tunnel device. The
// driver starts it; its arguments are the driver's own.
func (a *app) workerCmd() *cobra.Command {
	return &cobra.Command{
		Use: "worker", Hidden: true, DisableFlagParsing: true, Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			// The worker outlives the agent and knows its own signals; that
			// of the agent's terminal is none of them.
			return wguser.RunWorker(context.Background(), args)
		},
	}
}

// holderCmd is the process that keeps the sockets of ESP in UDP open. The
// driver starts it, as it starts workers.
func (a *app) holderCmd() *cobra.Command {
	return &cobra.Command{
		Use: "esp-holder", Hidden: true, DisableFlagParsing: true, Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			return ipsec.RunHolder(context.Background(), args)
		},
	}
}

// espWorkerCmd is the process that serves one device of userspace ESP.
func (a *app) espWorkerCmd() *cobra.Command {
	return &cobra.Command{
		Use: "esp-worker", Hidden: true, DisableFlagParsing: true, Args: cobra.ArbitraryArgs,
		RunE: func(_ *cobra.Command, args []string) error {
			return espuser.RunWorker(context.Background(), args)
		},
	}
}

func espWorkerCommand() []string { return []string{selfExe, "esp-worker"} }

func holderCommand() []string { return []string{selfExe, "esp-holder"} }

// workerCommand starts this very program again as a worker, even if its file
// has been replaced meanwhile.
func workerCommand() []string { return []string{selfExe, "worker"} }

const selfExe = "/proc/self/exe"
