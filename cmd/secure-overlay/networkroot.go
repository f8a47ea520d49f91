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
	signed, err := a.lineOf(t.signed)
	if t.rootKey != "" || t.plaintext {
		var printed bool
		signed, printed, err = a.rootSays(t.rootKey, t.format, func() (rootRequest, error) { return t.draft(ctx, c) })
		if printed {
			return err
		}
		t.steps = map[bool]step{} // none, if it is that already
	}
	if err != nil {
		return err
	}
	if signed != "" {
		if err := t.take(signed); err != nil {
			return err
		}
	}
	return a.toggle(ctx, c, t)
}

// draft makes the request for what the network still has to become, in one step or in two; empty: nothing.
func (t *toggle) draft(ctx context.Context, c *api.Client) (out rootRequest, err error) {
	n, err := find(ctx, c, t.name)
	if err != nil {
		return out, err
	}
	trust, err := trustOf(ctx, c)
	if err != nil {
		return out, err
	}
	// A network that has both forms already gets them once more: so what is signed says how it is to go on.
	moves := []bool{false}
	if t.migrate {
		moves = []bool{true, false}
	}
	var items [][]byte
	for i, moving := range moves {
		want, err := t.want(n, moving)
		if err != nil || want == nil {
			return out, err
		}
		have := item.Network{Generation: n.Definition.Generation + uint32(i)} //nolint:gosec // 0 or 1
		content, err := item.NetworkContent(have, *want, time.Now())
		if err != nil {
			return out, err
		}
		unsigned, err := content.Unsigned(trust)
		if err != nil {
			return out, err
		}
		items = append(items, unsigned)
	}
	out.Request = item.Line(item.RootRequestTag, items...)
	return out, nil
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

// want is what the root is to say about a network, moving or in the end; nil if it is there.
func (t *toggle) want(n api.Network, moving bool) (*item.Network, error) {
	d := n.Definition
	if d == nil {
		return nil, errOfNode(n.Name)
	}
	if d.Encrypted == !t.plaintext && !d.Moving {
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
