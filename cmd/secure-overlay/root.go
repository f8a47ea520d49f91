package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/internal/nearest"
)

// globalFlags are those of every command.
type globalFlags struct {
	config     string
	runtimeDir string
}

// root builds the command tree.
func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "secure-overlay",
		Short: "Encrypted overlay networks for containers, virtual machines and processes",
		Long: `secure-overlay joins hosts by layer-2 networks that are encrypted unless the
configuration says otherwise. One agent runs on each host.

  secure-overlay init                     found a cluster on the first host
  secure-overlay up -c FILE --detach      run the agent
  secure-overlay token create             print what lets another host join
  secure-overlay join TOKEN               join, on the other host
  secure-overlay attach NET --pid N       plug a container into a network
  secure-overlay status                   what works, what does not, and the fix
  secure-overlay keys rotate --wait       new keys everywhere, without losing a packet`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		Args:              cobra.ArbitraryArgs,
		RunE:              a.group,
		CompletionOptions: cobra.CompletionOptions{HiddenDefaultCmd: false},
	}
	root.SetFlagErrorFunc(flagError)
	f := root.PersistentFlags()
	f.StringVarP(&a.global.config, "config", "c", "", "configuration file (default "+config.DefaultPath+", or $SECURE_OVERLAY_CONFIG)")
	f.StringVar(&a.global.runtimeDir, "runtime-dir", "", "directory of the agent's control socket (default "+config.DefaultRuntimeDir+")")
	_ = root.MarkPersistentFlagFilename("config", "yaml", "yml")
	_ = root.MarkPersistentFlagDirname("runtime-dir")
	root.AddCommand(
		a.initCmd(), a.tokenCmd(), a.issuerCmd(), a.joinCmd(), a.upCmd(), a.reloadCmd(), a.downCmd(),
		a.statusCmd(), a.membersCmd(), a.revokeCmd(), a.leaveCmd(), a.networkCmd(), a.attachCmd(), a.detachCmd(), a.endpointCmd(),
		a.keysCmd(), a.protocolCmd(), a.eventsCmd(), a.metricsCmd(), a.configCmd(), a.doctorCmd(), a.demoCmd(), a.versionCmd(), a.workerCmd(), a.holderCmd(), a.espWorkerCmd(),
	)
	return root
}

// group is what a command with subcommands does when none was given, or one
// that does not exist.
func (a *app) group(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	var names []string
	for _, c := range cmd.Commands() {
		if c.IsAvailableCommand() {
			names = append(names, c.Name())
			names = append(names, c.Aliases...)
		}
	}
	e := &usageError{msg: fmt.Sprintf("unknown command %q", strings.TrimSpace(cmd.CommandPath()+" "+args[0])), fix: cmd.CommandPath() + " --help"}
	if near, ok := nearest.Of(args[0], names); ok {
		e.msg += fmt.Sprintf(", did you mean %q?", near)
		e.fix = cmd.CommandPath() + " " + near
	}
	return e
}

// flagError turns a flag that does not parse into a usage error, with the
// flag that was probably meant.
func flagError(cmd *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	e := &usageError{msg: err.Error(), fix: cmd.CommandPath() + " --help"}
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) {
		var names []string
		add := func(f *pflag.Flag) {
			if !f.Hidden {
				names = append(names, f.Name)
			}
		}
		cmd.Flags().VisitAll(add)
		cmd.InheritedFlags().VisitAll(add)
		if near, ok := nearest.Of(unknown.GetSpecifiedName(), names); ok {
			e.msg += fmt.Sprintf(", did you mean --%s?", near)
		}
	}
	return e
}

// args checks the number of arguments; names are those in the usage line.
func args(names ...string) cobra.PositionalArgs { return argsFrom(len(names), names...) }

// argsFrom wants at least so many of the arguments with these names.
func argsFrom(least int, names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < least:
			return &usageError{msg: fmt.Sprintf("%s: %s is missing", cmd.CommandPath(), names[len(args)]), fix: cmd.UseLine()}
		case len(args) > len(names):
			return &usageError{msg: fmt.Sprintf("%s: %q is one argument too many", cmd.CommandPath(), args[len(names)]), fix: cmd.UseLine()}
		}
		return nil
	}
}

// source says where the configuration comes from: the file of -c, of the
// environment, or the default one if it exists.
func (a *app) source(flags map[string]string) config.Source {
	src := config.Source{Path: a.global.config, Env: a.env, Flags: map[string]string{}}
	for k, v := range flags {
		src.Flags[k] = v
	}
	if a.global.runtimeDir != "" {
		src.Flags["runtime-dir"] = a.global.runtimeDir
	}
	if src.Path == "" {
		src.Path = a.getenv("SECURE_OVERLAY_CONFIG")
	}
	if src.Path == "" {
		if _, err := os.Stat(config.DefaultPath); err == nil {
			src.Path = config.DefaultPath
		}
	}
	return src
}

func (a *app) getenv(name string) string {
	for _, kv := range a.env {
		if k, v, _ := strings.Cut(kv, "="); k == name {
			return v
		}
	}
	return ""
}

// load reads the configuration and explains a missing file.
func (a *app) load(flags map[string]string) (config.Config, error) {
	src := a.source(flags)
	cfg, err := config.Load(src)
	if errors.Is(err, os.ErrNotExist) {
		return cfg, fail(api.CodeInvalid, "secure-overlay init -c "+src.Path, "there is no configuration file %s", src.Path)
	}
	return cfg, err
}

// client returns a client of the running agent.
func (a *app) client() (*api.Client, error) {
	dir, err := config.RuntimeDir(a.source(nil))
	if err != nil {
		return nil, err
	}
	return api.NewClient(dir + "/agent.sock"), nil
}

// ask connects, calls, and adds to the fix what the user's own flags say.
func ask[T any](ctx context.Context, a *app, call func(*api.Client) (T, error)) (T, error) {
	c, err := a.client()
	if err != nil {
		var zero T
		return zero, err
	}
	defer c.Close()
	v, err := call(c)
	var e *api.Error
	if errors.As(err, &e) && e.Code == api.CodeNotRunning {
		e.Fix = "sudo secure-overlay up --detach" + a.sameAgent(a.source(nil).Path)
	}
	return v, err
}

// output adds -o and --json to a reading command and returns the choice.
func (a *app) output(cmd *cobra.Command) *cli.Format {
	format := cli.FormatTable
	f := cmd.Flags()
	f.VarP(&format, "output", "o", "output format: "+strings.Join(cli.Formats(), ", "))
	f.VarPF(jsonAlias{&format}, "json", "", "same as -o json").NoOptDefVal = "true"
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(cli.Formats(), cobra.ShellCompDirectiveNoFileComp))
	return &format
}

// jsonAlias is the flag --json.
type jsonAlias struct{ format *cli.Format }

func (jsonAlias) String() string   { return "false" }
func (jsonAlias) Type() string     { return "bool" }
func (jsonAlias) IsBoolFlag() bool { return true }
func (j jsonAlias) Set(s string) error {
	switch s {
	case "true":
		return j.format.Set(string(cli.FormatJSON))
	case "false":
		return nil
	}
	return fmt.Errorf("%q is not true or false", s)
}

// cleanLines keeps line breaks of an error text and cleans the rest.
func cleanLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = cli.Clean(lines[i])
	}
	return strings.Join(lines, "\n  ")
}
