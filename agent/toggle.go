package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// noteApplied notes which forms of each network the kernel has after a round, and
// reports whether that has changed. What failed is taken for what it was before: a
// device that could not be deleted may still carry frames. What it was before this
// agent nobody knows; then it may be one in clear.
func (l *loop) noteApplied() bool {
	now := map[string]Forms{}
	for _, s := range l.out.Networks {
		f := Forms{Encrypted: s.Encrypted || s.Other != nil, Clear: !s.Encrypted || s.Other != nil}
		if l.failed(s.Network, "") != nil || f.Encrypted && l.guardFailed {
			was, ok := l.forms[s.Network]
			if !ok {
				was = Forms{Encrypted: f.Encrypted, Clear: true}
			}
			f, f.Old = was, true
		}
		now[s.Network] = f
	}
	if maps.Equal(now, l.forms) {
		return false
	}
	l.forms = now
	return true
}

// follows reports whether a node has done what the cluster says about the form of a
// network: while it moves, sends by the new one only; else has no other.
func follows(n item.Network, r record.Network) bool {
	return r.Encrypted == n.Encrypted && (!r.Both || n.Moving && r.Moved)
}

// change says how far the nodes are that have a network of the cluster, nil if all
// have it as it is to be.
func (l *loop) change(n item.Network) *api.NetworkChange {
	c := &api.NetworkChange{Encrypted: n.Encrypted, Migrate: n.Moving}
	snap := l.gossip.Snapshot()
	note := func(ref api.NodeRef, state string, r record.Node) {
		i := slices.IndexFunc(r.Networks, func(r record.Network) bool { return r.Name == n.Name })
		if i < 0 {
			return
		}
		c.Nodes.Total++
		if follows(n, r.Networks[i]) {
			c.Nodes.OK++
			return
		}
		c.Waiting = append(c.Waiting, api.NetworkWait{RevocationWait: api.RevocationWait{NodeRef: ref, State: state}, Form: formName(r.Networks[i])})
	}
	// Of this node what it has published last: its own record comes back later.
	note(l.self(), "alive", l.previous)
	for _, m := range snap.Members {
		if m.ID != l.identity.ID && !l.gone(m.ID) {
			note(api.NodeRef{ID: m.ID, Name: m.Hostname}, m.State.String(), m.Record)
		}
	}
	if !n.Moving && len(c.Waiting) == 0 {
		return nil
	}
	// Who has not begun holds up all others, who cannot send to it in the new form.
	late := func(w api.NetworkWait) bool { return w.Form != formBoth }
	if n.Moving && slices.ContainsFunc(c.Waiting, late) {
		c.Waiting = slices.DeleteFunc(c.Waiting, func(w api.NetworkWait) bool { return !late(w) })
	}
	slices.SortFunc(c.Waiting, func(x, y api.NetworkWait) int { return cmp.Or(cmp.Compare(x.Name, y.Name), x.ID.Compare(y.ID)) })
	return c
}

const formBoth = "both"

// formName says in which form a node has a network, for people.
func formName(r record.Network) string {
	switch {
	case r.Both:
		return formBoth
	case r.Encrypted:
		return "encrypted"
	}
	return "plaintext"
}

// definition is what a signature over a change of a network is made from.
func definition(n item.Network) *api.NetworkDefinition {
	return &api.NetworkDefinition{
		Encrypted: n.Encrypted, Moving: n.Moving, Driver: n.Driver, MTU: int(n.MTU), VXLANPort: n.VTEPPort, Generation: n.Generation,
	}
}

// ofCluster fills in what the cluster says about a network.
func (l *loop) ofCluster(a *api.Network, snap membership.Snapshot) {
	n, ok := clusterNetwork(snap, a.Name)
	if !ok {
		return
	}
	a.Cluster, a.Definition, a.Change = true, definition(n), l.change(n)
}

var errUnchanged = errors.New("network is as it is to be")

// UpdateNetwork implements api.NetworkDefiner.
func (a *Agent) UpdateNetwork(ctx context.Context, name string, req api.NetworkUpdate) (api.Network, error) {
	var d definer
	var err error
	doErr := a.do(ctx, func(_ context.Context, l *loop) {
		d = l.definer
		err = l.mayUpdate(name, req)
	})
	if err := cmp.Or(doErr, err); err != nil {
		return api.Network{}, err
	}
	if len(req.Item) > 0 {
		n, err := d.SetNetwork(req.Item)
		if err == nil && n.Name != name {
			err = typed(api.CodeInvalid, nil, fmt.Sprintf("what the root has signed is about network %s, not %s; it is in force", n.Name, name), "")
		}
		if err != nil {
			return api.Network{}, a.defineError(ctx, name, err)
		}
		return a.network(ctx, name)
	}
	_, err = d.ChangeNetwork(ctx, name, func(n item.Network) (item.Network, error) { return toggled(n, req) })
	if err != nil && !errors.Is(err, errUnchanged) {
		return api.Network{}, a.defineError(ctx, name, err)
	}
	return a.network(ctx, name)
}

// toggled is a network as an update wants it.
func toggled(n item.Network, req api.NetworkUpdate) (item.Network, error) {
	was := n
	if was.Encrypted && req.Driver != "" && req.Driver != was.Driver && req.Driver != item.DriverAuto {
		return n, typed(api.CodeRefused, nil, fmt.Sprintf("network %s is encrypted, and another driver under it would cut it off for a moment", n.Name),
			"secure-overlay keys rotate --driver "+req.Driver+" --wait, which loses nothing")
	}
	n.Encrypted, n.Moving = req.Encrypted, req.Migrate
	n.Driver = item.DriverAuto
	switch {
	case was.Encrypted:
		n.Driver = was.Driver
	case n.Encrypted:
		n.Driver = cmp.Or(req.Driver, item.DriverAuto)
	}
	if n.Moving && was.Encrypted == n.Encrypted && !was.Moving {
		n.Moving = false // it is there already
	}
	if n.Encrypted == was.Encrypted && n.Moving == was.Moving && n.Driver == was.Driver {
		return n, errUnchanged
	}
	return n, nil
}

// mayUpdate checks a change of a network against what this node knows.
func (l *loop) mayUpdate(name string, req api.NetworkUpdate) error {
	of, ok := clusterNetwork(l.gossip.Snapshot(), name)
	if !ok || len(req.Item) > 0 || req.Driver == "" {
		return nil // what the cluster does not have is refused further down
	}
	spec := config.NetworkSpec{Name: of.Name, VNI: int64(of.VNI), Driver: req.Driver}
	for _, s := range of.Subnets {
		spec.Subnets = append(spec.Subnets, s.String())
	}
	n, err := spec.Network()
	if err != nil {
		return networkSpecError(err)
	}
	for _, o := range l.networksKnown() {
		if o.Name == name {
			continue
		}
		if err := n.Clash(o.Network); err != nil {
			return typed(api.CodeRefused, err, fmt.Sprintf("%v (%s)", err, o.where), "choose another driver")
		}
	}
	return nil
}
