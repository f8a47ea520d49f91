package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/cli"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

func (a *app) protocolCmd() *cobra.Command {
	cmd := &cobra.Command{
		Use: "protocol", Short: "Show and limit the protocol versions that nodes speak", Args: cobra.ArbitraryArgs, RunE: a.group,
	}
	cmd.AddCommand(a.protocolFloor())
	return cmd
}

func (a *app) protocolFloor() *cobra.Command {
	cmd := &cobra.Command{
		Use: "floor", Short: "Show, raise or lower the lowest protocol version of the cluster", Args: args(),
		Long: `Show the lowest protocol version that nodes of the cluster speak with each other, or
change it. Nodes whose program is older than that are refused by the others, until
they are updated; their tunnels stay as they are.

A node that holds an issuer key raises the floor. Lowering it takes the root key, which
can stay on a machine of its own:

  on any node          secure-overlay protocol floor --lower N
  with the root key    secure-overlay issuer sign --root-key FILE REQUEST
  on any node          secure-overlay protocol floor --signed SIGNED

Where the root key is at hand on the node, --lower N --root-key FILE does all three.
Where no node can talk to another any more, the last step is needed on each.`,
	}
	format := a.output(cmd)
	f := cmd.Flags()
	raise := f.Uint8("raise", 0, "lowest version from now on")
	force := f.Bool("force", false, "with --raise: also if nodes are known that speak less")
	lower := f.Uint8("lower", 0, "lowest version from now on; takes the root key")
	root := f.String("root-key", "", "with --lower: file with the root key that init wrote")
	signed := f.String("signed", "", "what issuer sign printed; - reads standard input")
	_ = cmd.MarkFlagFilename("root-key")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := checkFloor(f.Changed("raise"), f.Changed("lower"), *force, *root, *signed); err != nil {
			return err
		}
		var p api.ProtocolAnswer
		var err error
		switch {
		case f.Changed("raise"):
			p, err = a.setFloor(cmd, api.FloorRequest{Raise: *raise, Force: *force})
		case f.Changed("lower"):
			text, printed, err := a.rootSays(*root, *format, func() (rootRequest, error) { return a.draftFloor(cmd.Context(), *lower) })
			if err != nil || printed {
				return err
			}
			if p, err = a.signedFloor(cmd, text); err != nil {
				return err
			}
		case *signed != "":
			p, err = a.signedFloor(cmd, *signed)
		default:
			p, err = ask(cmd.Context(), a, func(c *api.Client) (api.ProtocolAnswer, error) { return c.Protocol(cmd.Context()) })
		}
		if err != nil {
			return err
		}
		return a.show(*format, p, nil, func() error { a.sayFloor(p.Protocol, time.Now()); return nil })
	}
	return cmd
}

func checkFloor(raise, lower, force bool, root, signed string) error {
	switch {
	case raise && lower:
		return &usageError{msg: "--raise and --lower contradict each other", fix: "give one of them"}
	case signed != "" && (raise || lower || root != ""):
		return &usageError{msg: "--signed takes what was signed as it is", fix: "secure-overlay protocol floor --signed SIGNED"}
	case root != "" && !lower:
		return &usageError{msg: "--root-key is for --lower", fix: "--lower N --root-key FILE"}
	case force && !raise:
		return &usageError{msg: "--force is for --raise", fix: "--raise N --force"}
	}
	return nil
}

func (a *app) setFloor(cmd *cobra.Command, req api.FloorRequest) (api.ProtocolAnswer, error) {
	return ask(cmd.Context(), a, func(c *api.Client) (api.ProtocolAnswer, error) { return c.SetFloor(cmd.Context(), req) })
}

// draftFloor makes the request for a lower floor.
func (a *app) draftFloor(ctx context.Context, least uint8) (rootRequest, error) {
	return ask(ctx, a, func(c *api.Client) (out rootRequest, err error) {
		have, err := c.Protocol(ctx)
		if err != nil {
			return out, err
		}
		if least >= have.Floor {
			return out, &usageError{msg: fmt.Sprintf("the floor is %d: %d is not lower", have.Floor, least), fix: "secure-overlay protocol floor --raise N on a node with an issuer key"}
		}
		trust, err := trustOf(ctx, c)
		if err != nil {
			return out, err
		}
		content, err := item.FloorContent(item.Floor{Min: have.Floor, Generation: have.Generation}, least, time.Now())
		if err != nil {
			return out, err
		}
		unsigned, err := content.Unsigned(trust)
		if err != nil {
			return out, &usageError{msg: fmt.Sprintf("%d is no floor: %v", least, err), fix: "--lower 1"}
		}
		out.Request = item.Line(item.RootRequestTag, unsigned)
		return out, nil
	})
}

// signedFloor hands over what the root key has signed.
func (a *app) signedFloor(cmd *cobra.Command, text string) (api.ProtocolAnswer, error) {
	text, err := a.lineOf(text)
	if err != nil {
		return api.ProtocolAnswer{}, err
	}
	items, err := rootItems(text)
	if err != nil {
		return api.ProtocolAnswer{}, err
	}
	if len(items) != 1 || items[0].Slot != item.FloorSlot() {
		return api.ProtocolAnswer{}, &usageError{msg: "what was signed is no protocol floor", fix: "the command that issuer sign named"}
	}
	return a.setFloor(cmd, api.FloorRequest{Item: items[0].Raw})
}

func (a *app) sayFloor(p api.Protocol, now time.Time) {
	since := ""
	if !p.Since.IsZero() {
		since = "   set " + cli.Ago(p.Since, now) + " ago"
	}
	a.print("floor %d%s   this program speaks %d to %d", p.Floor, since, p.Min, p.Max)
}
