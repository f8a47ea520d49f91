package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
)

func (a *app) reloadCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "reload", Short: "Have the agent take up its changed configuration file", Args: args(),
		Long: `Have the agent take up its changed configuration file, and print what has changed. It
does so by itself when the file changes, and on SIGHUP.

Networks, log.level, keys.rotate_every and the limits of ESP keys can change while
the agent runs. If anything else has changed, or the file has a mistake, nothing is
changed, and the error says why; so does "status" until the file is mended.`,
	}
	format := a.output(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		r, err := ask(cmd.Context(), a, func(c *api.Client) (api.Reload, error) { return c.Reload(cmd.Context()) })
		if err != nil {
			return err
		}
		return a.show(*format, r, anys(r.Changes), func() error {
			if len(r.Changes) == 0 {
				a.print("nothing has changed")
				return nil
			}
			t := cli.NewTable("key", "from", "to")
			for _, c := range r.Changes {
				t.Row(c.Key, c.From, c.To)
			}
			t.Wrap(80)
			return t.Print(a.out)
		})
	}
	return cmd
}

// reloading is how a running agent takes up another configuration.
type reloading struct {
	load  func() (config.Config, error)
	path  string
	level *slog.LevelVar // of the log; nil: stays as it is
	every time.Duration  // how often the file is looked at
	taken stamp          // of the file when it was read last
}

func newReloading(load func() (config.Config, error), path string, level *slog.LevelVar) reloading {
	return reloading{load, path, level, watchEvery, stampOf(path)}
}

// loaded takes up what is not the agent's.
func (r reloading) loaded(cfg config.Config) {
	if r.level != nil {
		setLevel(r.level, cfg.Log.Level)
	}
}

// watchEvery is how often the file is looked at.
const watchEvery = 2 * time.Second

// watch reloads on SIGHUP and when the file has changed, until ctx ends. What was
// refused the agent itself tells.
func (r reloading) watch(ctx context.Context, log *slog.Logger, reload func(context.Context) (api.Reload, error)) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	tick := time.NewTicker(r.every)
	defer tick.Stop()
	taken, last := r.taken, r.taken
	for {
		select {
		case <-ctx.Done():
			return
		case <-hup:
		case <-tick.C:
			// Two equal looks: whoever writes it is done.
			now := stampOf(r.path)
			still := now == last
			if last = now; !still || now == taken {
				continue
			}
		}
		taken = stampOf(r.path)
		last = taken
		if _, err := reload(ctx); err != nil && ctx.Err() == nil {
			log.Debug("reload", logkey.Error, err)
		}
	}
}

// stamp tells one state of a file from another.
type stamp struct {
	inode uint64
	size  int64
	at    time.Time
}

// stampOf is the zero stamp for a file that is not there: an editor may be about to
// put a new one in its place.
func stampOf(path string) stamp {
	info, err := os.Stat(path)
	if err != nil {
		return stamp{}
	}
	s := stamp{size: info.Size(), at: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		s.inode = st.Ino
	}
	return s
}
