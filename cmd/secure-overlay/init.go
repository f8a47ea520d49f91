package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
)

// identity is what init and join print for programs.
type identity struct {
	Schema  int         `json:"schema"`
	Cluster string      `json:"cluster"`
	Node    api.NodeRef `json:"node"`
	Config  string      `json:"config"`
	DataDir string      `json:"data_dir"`
	RootKey string      `json:"root_key,omitempty"` // path; only when this call wrote it
	Changed bool        `json:"changed"`            // false: the identity was there already
}

func (a *app) initCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Found a cluster: write a configuration and this node's identity",
		Long: `Found a cluster on its first node: write a commented configuration file if there
is none, and the keys of the cluster and of this node. Nothing that exists is
overwritten. Other nodes use join instead.`,
		Args: args(),
	}
	format := a.output(cmd)
	flags := settingFlags(cmd)
	rootKey := cmd.Flags().String("root-key", "", "where to write the cluster's root key (default: root.key in the data directory)")
	_ = cmd.MarkFlagFilename("root-key")
	seal := cmd.Flags().Bool("root-passphrase", false, "seal the root key with a passphrase, which is asked for")
	cmd.RunE = func(*cobra.Command, []string) error {
		var passphrase []byte
		if *seal {
			var err error
			if passphrase, err = a.newRootPassphrase(); err != nil {
				return err
			}
			defer clear(passphrase)
		}
		cfg, path, err := a.plan(flags())
		if err != nil {
			return err
		}
		id, err := found(cfg, *rootKey, passphrase)
		if err != nil {
			return err
		}
		id.Config = path
		wrote, err := writeNewConfig(path, cfg)
		if err != nil {
			return err // repeating init writes it
		}
		return a.show(*format, id, nil, func() error { return a.sayInit(id, wrote) })
	}
	return cmd
}

// plan loads the configuration, or what a new one would say: the defaults
// with the flags and the environment. path is where the file is or will be.
func (a *app) plan(flags map[string]string) (cfg config.Config, path string, err error) {
	src := a.source(flags)
	if path = src.Path; path == "" {
		path = config.DefaultPath
	}
	if path, err = filepath.Abs(path); err != nil {
		return cfg, path, fmt.Errorf("find configuration: %w", err)
	}
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		src.Path = ""
	}
	cfg, err = config.Load(src)
	return cfg, path, err
}

// found makes the cluster, or reports the one that this node founded before.
func found(cfg config.Config, rootKey string, passphrase []byte) (identity, error) {
	if rootKey != "" {
		abs, err := filepath.Abs(rootKey)
		if err != nil {
			return identity{}, fmt.Errorf("find root key file: %w", err)
		}
		rootKey = abs
	}
	store, err := keystore.Init(cfg.DataDir, keystore.InitOptions{Hostname: cfg.Node.Name, RootKeyFile: rootKey, RootPassphrase: passphrase})
	if errors.Is(err, keystore.ErrExists) {
		return known(cfg, err)
	}
	if err != nil {
		return identity{}, err
	}
	id, err := describe(store, cfg)
	if err != nil {
		return identity{}, errors.Join(err, store.Close())
	}
	id.Changed = true
	if id.RootKey = rootKey; rootKey == "" {
		id.RootKey = filepath.Join(cfg.DataDir, "root.key")
	}
	return id, store.Close()
}

// known describes an identity that exists, if it is one that init makes:
// repeating init then changes nothing and is no error.
func known(cfg config.Config, exists error) (identity, error) {
	store, err := keystore.Open(cfg.DataDir)
	if err != nil {
		return identity{}, exists
	}
	id, err := describe(store, cfg)
	if _, ierr := store.Issuer(); ierr != nil {
		// A member that joined: founding another cluster here cannot be meant.
		return identity{}, errors.Join(exists, store.Close())
	}
	return id, errors.Join(err, store.Close())
}

func describe(store *keystore.Store, cfg config.Config) (identity, error) {
	id, err := store.Identity()
	if err != nil {
		return identity{}, err
	}
	return identity{
		Schema: api.Schema, Cluster: id.Trust.Cluster.String(),
		Node: api.NodeRef{ID: id.ID, Name: id.Hostname}, DataDir: cfg.DataDir,
	}, nil
}

func (a *app) sayInit(id identity, wroteConfig bool) error {
	verb := map[bool]string{true: "wrote", false: "kept "}
	a.print("%s  configuration  %s", verb[wroteConfig], id.Config)
	a.print("%s  identity       %s", verb[id.Changed], id.DataDir)
	a.print("       node           %s (%s)", cli.Clean(id.Node.Name), id.Node.ID)
	a.print("       cluster        %s", id.Cluster)
	if !id.Changed {
		a.say("the cluster was founded before; nothing was changed")
		return nil
	}
	a.print("wrote  root key       %s", id.RootKey)
	a.say(`
%s the root key is the cluster: whoever has it can admit anyone.
The agent does not need it. Move it to a safe place off this machine now:
  %s`, a.err.Paint(cli.Bold, "Take the root key away:"), id.RootKey)
	a.nextSteps(id.Config)
	a.say("  sudo secure-overlay token create%s      # then, on each other host:\n  sudo secure-overlay join TOKEN", a.sameAgent(id.Config))
	return nil
}

// nextSteps prints how to start the agent.
func (a *app) nextSteps(path string) {
	a.say("\nNext: look at the networks in the file, then\n  sudo secure-overlay up --detach%s", a.sameAgent(path))
}

// sameAgent is the flags with which a command that we suggest finds the same
// agent: those that are not the default.
func (a *app) sameAgent(path string) string {
	out := ""
	if path != "" && path != config.DefaultPath {
		out += " -c " + quoteArg(path)
	}
	if dir := a.global.runtimeDir; dir != "" {
		// A file that init wrote says it itself.
		if inFile, err := config.RuntimeDir(config.Source{Path: path}); err != nil || inFile != dir {
			out += " --runtime-dir " + quoteArg(dir)
		}
	}
	return out
}

// quoteArg quotes an argument for a shell if it needs it.
func quoteArg(s string) string {
	const plain = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-:=,@%+"
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}
