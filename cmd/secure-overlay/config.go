package main

import (
	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/cli"
)

// settingFlags adds the flags that set keys of the configuration. The result
// gives those that were used. --runtime-dir is a global flag already.
func settingFlags(cmd *cobra.Command) func() map[string]string {
	f := cmd.Flags()
	for _, info := range config.Flags() {
		if info.Flag == "runtime-dir" {
			continue
		}
		help := info.Help
		if info.Default != "" {
			help += " (default " + info.Default + ")"
		}
		if info.Bool {
			f.Bool(info.Flag, false, help)
			continue
		}
		f.String(info.Flag, "", help)
	}
	completeChoices(cmd)
	return func() map[string]string {
		out := map[string]string{}
		for _, info := range config.Flags() {
			if info.Flag == "runtime-dir" {
				continue // source adds it
			}
			if fl := f.Lookup(info.Flag); fl != nil && fl.Changed {
				out[info.Flag] = fl.Value.String()
			}
		}
		return out
	}
}

func completeChoices(cmd *cobra.Command) {
	for flag, choices := range map[string][]string{
		"profile":   {config.ProfileLAN, config.ProfileWAN, config.ProfileLocal},
		"log-level": {"debug", "info", "warn", "error"}, "log-format": {"text", "json"},
		"ipsec-encap": {config.EncapAuto, config.EncapNone, config.EncapUDP},
	} {
		_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(choices, cobra.ShellCompDirectiveNoFileComp))
	}
	_ = cmd.MarkFlagDirname("data-dir")
}

func (a *app) configCmd() *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Check and show the configuration", Args: cobra.ArbitraryArgs, RunE: a.group}
	cmd.AddCommand(a.configValidate(), a.configShow())
	return cmd
}

// validation is what `config validate` prints for programs.
type validation struct {
	Schema   int              `json:"schema"`
	File     string           `json:"file"`
	Valid    bool             `json:"valid"`
	Networks int              `json:"networks"`
	Problems []config.Problem `json:"problems"`
}

func (a *app) configValidate() *cobra.Command {
	cmd := &cobra.Command{
		Use: "validate [FILE]", Aliases: []string{"check"}, Short: "Check a configuration; names every problem, exit code 2 if there is one",
		Args: argsFrom(0, "FILE"),
	}
	format := a.output(cmd)
	flags := settingFlags(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		if len(args) == 1 {
			a.global.config = args[0]
		}
		cfg, err := a.load(flags())
		problems := config.AsProblems(err)
		if err != nil && problems == nil {
			return err
		}
		v := validation{Schema: api.Schema, File: a.source(nil).Path, Valid: err == nil, Networks: len(cfg.Networks), Problems: problems}
		if v.Problems == nil {
			v.Problems = []config.Problem{}
		}
		if *format != cli.FormatTable {
			if werr := format.Write(a.out.W, api.Schema, v, nil); werr != nil {
				return werr
			}
			if err != nil {
				return &exitError{api.CodeInvalid.ExitCode()}
			}
			return nil
		}
		if err != nil {
			return err
		}
		a.print("%s is valid: %s", v.File, cli.Plural(v.Networks, "network"))
		for _, n := range cfg.Networks {
			if !n.Encrypted {
				a.say("%s network %s is not encrypted", a.err.Paint(cli.Warn, "warning:"), n.Name)
			}
		}
		return nil
	}
	return cmd
}

// settings is what `config show` prints for programs.
type settings struct {
	Schema   int              `json:"schema"`
	Settings []config.Setting `json:"settings"`
}

func (a *app) configShow() *cobra.Command {
	cmd := &cobra.Command{
		Use: "show", Short: "Show the configuration in force", Args: args(),
		Long: "Show the configuration in force after defaults, file, environment and flags.\nIt holds no secrets.",
	}
	format := a.output(cmd)
	origin := cmd.Flags().Bool("origin", false, "say where each value came from")
	flags := settingFlags(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		cfg, err := a.load(flags())
		if err != nil {
			return err
		}
		list := cfg.Settings()
		if !*origin {
			for i := range list {
				list[i].Origin = ""
			}
		}
		return a.show(*format, settings{api.Schema, list}, anys(list), func() error {
			header := []string{"key", "value"}
			if *origin {
				header = append(header, "origin")
			}
			t := cli.NewTable(header...)
			for _, s := range list {
				if *origin {
					t.Row(s.Key, s.Value, string(s.Origin))
				} else {
					t.Row(s.Key, s.Value)
				}
			}
			return t.Print(a.out)
		})
	}
	return cmd
}
