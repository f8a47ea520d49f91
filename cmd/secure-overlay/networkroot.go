package main

import (
	"bytes"
	"context"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// step is what the root key has signed about a network.
type step struct {
	*item.Item
	to item.Network
}

// updateNetwork changes a network, or asks for the signature that it takes.
func (a *app) updateNetwork(ctx context.Context, c *api.Client, t *toggle) error {
	signed := t.signed
	if t.rootKey != "" || t.plaintext {
		// Read first, so that a wrong file is found before anything else.
		key, err := a.readRoot(t.rootKey)
		if err != nil {
			return err
		}
		if key != nil {
			defer key.Wipe()
		}
		request, err := t.draft(ctx, c)
		switch {
		case err != nil:
			return err
		case request == "":
			t.steps = map[bool]step{} // it is there already
		case key == nil:
			return a.askRoot(request, nil, t.format)
		default:
			out, err := signRoot(*key, request)
			if err != nil {
				return err
			}
			signed = out.Signed
		}
	}
	if signed != "" {
		text, err := a.lineOf(signed)
		if err != nil {
			return err
		}
		if err := t.take(text); err != nil {
			return err
		}
	}
	return a.toggle(ctx, c, t)
}

// draft makes the request for what the network still has to become, in one step or in two; empty: nothing.
func (t *toggle) draft(ctx context.Context, c *api.Client) (string, error) {
	n, err := find(ctx, c, t.name)
	if err != nil {
		return "", err
	}
	trust, err := trustOf(ctx, c)
	if err != nil {
		return "", err
	}
	var items [][]byte
	for _, moving := range []bool{true, false} {
		want, err := t.want(n, moving)
		if err != nil {
			return "", err
		}
		if want == nil || moving && !t.migrate {
			continue
		}
		have := item.Network{Generation: n.Definition.Generation + uint32(len(items))} //nolint:gosec // 0 or 1
		content, err := item.NetworkContent(have, *want, time.Now())
		if err != nil {
			return "", err
		}
		unsigned, err := content.Unsigned(trust)
		if err != nil {
			return "", err
		}
		items = append(items, unsigned)
	}
	if len(items) == 0 {
		return "", nil
	}
	return item.Line(item.RootRequestTag, items...), nil
}

// take takes what was signed for what to do.
func (t *toggle) take(text string) error {
	items, err := rootItems(text)
	if err != nil {
		return err
	}
	t.steps = map[bool]step{}
	for _, it := range items {
		to, ok := it.Network()
		if !ok || to.Name != t.name {
			return &usageError{msg: fmt.Sprintf("what was signed is not about network %s", t.name), fix: "the command that issuer sign named"}
		}
		t.steps[to.Moving] = step{it, to}
		t.plaintext, t.driver = !to.Encrypted, string(to.Driver)
	}
	if _, ok := t.steps[false]; !ok {
		return &usageError{msg: "what was signed leaves the network both encrypted and plaintext", fix: "make the request with secure-overlay network update"}
	}
	_, t.migrate = t.steps[true]
	return nil
}

// done reports whether a step was taken. The definition that was signed takes the place of the network's, so what has
// been changed of it since the request must not be lost unseen: that is an error.
func (s step) done(n api.Network, t *toggle) (bool, error) {
	d, last := n.Definition, t.steps[false].to
	changed := fail(api.CodeRefused, "make a new request: the same command with --plaintext", "network %s has been changed since the request was made", n.Name)
	switch {
	case d == nil:
		return false, errOfNode(n.Name)
	case d.Generation > last.Generation:
		return false, changed
	case d.Generation == last.Generation && (d.Moving || d.Encrypted != last.Encrypted):
		return false, changed // and back again, by an issuer
	case d.Generation >= s.to.Generation:
		return true, nil
	}
	want, err := t.want(n, s.to.Moving)
	if err != nil {
		return false, err
	}
	if want == nil {
		return false, changed
	}
	content, err := item.NetworkContent(item.Network{Generation: s.to.Generation - 1}, *want, s.Created)
	if err != nil || !bytes.Equal(content.Body, s.Body) {
		return false, changed
	}
	return false, nil
}

func errOfNode(name string) error {
	return fail(api.CodeRefused, "change encrypted: there, on every node", "network %s is of this node's configuration, not of the cluster", name)
}

// want is what the root is to say about a network; nil if it is that.
func (t *toggle) want(n api.Network, moving bool) (*item.Network, error) {
	d := n.Definition
	if d == nil {
		return nil, errOfNode(n.Name)
	}
	if d.Encrypted == !t.plaintext && (!d.Moving || moving) {
		return nil, nil //nolint:nilnil // it is there
	}
	w := &item.Network{
		Network: record.Network{Name: n.Name, VNI: n.VNI, Encrypted: !t.plaintext, Subnets: n.Subnets, VTEPPort: d.VXLANPort, Options: n.Options},
		Driver:  item.DriverAuto, MTU: uint16(min(d.MTU, 1<<16-1)), //nolint:gosec // at most that
		Labels: n.Labels, Moving: moving,
	}
	switch {
	case d.Encrypted == w.Encrypted:
		w.Driver = d.Driver
	case w.Encrypted:
		w.Driver = t.driver
	}
	return w, nil
}
