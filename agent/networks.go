package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// definer gives the cluster networks; *membership.Cluster.
type definer interface {
	CreateNetwork(ctx context.Context, n item.Network) (item.Network, error)
	ChangeNetwork(ctx context.Context, name string, change func(item.Network) (item.Network, error)) (item.Network, error)
	SetNetwork(raw []byte) (item.Network, error)
	RemoveNetwork(ctx context.Context, name string) (item.Network, error)
}

// asConfig is a network of the cluster as one of a file.
func asConfig(n item.Network) config.Network {
	return config.Network{
		Name: n.Name, VNI: n.VNI, Subnets: n.Subnets, Encrypted: n.Encrypted, Moving: n.Moving, MTU: int(n.MTU), Driver: n.Driver,
		Options: n.Options, Labels: n.Labels,
	}
}

// networksHere decides which networks this node carries: those of its file, and
// those of the cluster that something here uses. It is pure.
//
// A file and the cluster may say different things about a network. Then the file
// stands, so that a command somewhere else takes no running network down, and
// other nodes show the conflict; but where the file would have in clear what the
// cluster has encrypted, the network is not there at all.
func networksHere(file []config.Network, cluster []item.Network, used func(name string) bool) (out []config.Network, problems []api.Problem) {
	contradiction := func(name, message string) {
		problems = append(problems, api.Problem{
			Code: "network-contradiction", Subject: name, Message: message,
			Fix: "change it in this node's configuration, or remove the network from the cluster: secure-overlay network rm " + name,
		})
	}
	inFile := map[string]bool{}
	for _, f := range file {
		inFile[f.Name] = true
		of, ok := clusterNetwork(membership.Snapshot{Networks: cluster}, f.Name)
		if !ok {
			out = append(out, f)
			continue
		}
		switch c := asConfig(of); {
		case !c.Clear() && !f.Encrypted:
			contradiction(f.Name, fmt.Sprintf("network %s is encrypted in the cluster and encrypted: false in this node's configuration: it is not connected here", f.Name))
			continue
		case len(f.Differences(c)) > 0:
			contradiction(f.Name, fmt.Sprintf("this node's configuration and the cluster differ about network %s: %s; here the configuration stands", f.Name, strings.Join(f.Differences(c), ", ")))
		}
		out = append(out, f)
	}
	for _, n := range cluster {
		c := asConfig(n)
		if inFile[c.Name] || !used(c.Name) {
			continue
		}
		if i := slices.IndexFunc(out, func(o config.Network) bool { return c.Clash(o) != nil }); i >= 0 {
			contradiction(c.Name, fmt.Sprintf("network %s cannot be on this node: %v", c.Name, c.Clash(out[i])))
			continue
		}
		if len(out) >= config.MaxNetworks {
			contradiction(c.Name, fmt.Sprintf("network %s cannot be on this node: it has %d networks, which is the most", c.Name, len(out)))
			continue
		}
		out = append(out, c)
	}
	return out, problems
}

// chooseNetworks sets which networks this turn is about.
func (l *loop) chooseNetworks(snap membership.Snapshot) {
	l.here = l.cfg
	if l.identity.Cert.Roles&keys.RoleObserver != 0 {
		return // an observer is on none
	}
	l.here.Networks, l.contradictions = networksHere(l.cfg.Networks, snap.Networks, l.uses)
}

// uses reports whether an endpoint is on a network, or asks to be.
func (l *loop) uses(network string) bool {
	return slices.ContainsFunc(l.attachments, func(at Attachment) bool { return at.Network == network }) ||
		slices.ContainsFunc(l.pending, func(p *pendingAttach) bool { return p.req.Network == network })
}

// unusedNetworks lists the networks of the cluster that are not on this node.
func (l *loop) unusedNetworks() []api.Network {
	var out []api.Network
	snap := l.gossip.Snapshot()
	for _, n := range snap.Networks {
		if _, here := l.here.Network(n.Name); here {
			continue
		}
		a := api.Network{
			Name: n.Name, VNI: n.VNI, Subnets: n.Subnets, Encrypted: !n.Clear(), MTU: int(n.MTU), State: api.StateUnused, Driver: "-",
			Options: n.Options, Labels: n.Labels,
		}
		l.ofCluster(&a, snap)
		out = append(out, a)
	}
	return out
}

// CreateNetwork implements api.NetworkDefiner.
func (a *Agent) CreateNetwork(ctx context.Context, req api.NetworkRequest) (api.Network, error) {
	n, err := config.NetworkSpec{
		Name: req.Name, Subnets: req.Subnets, Plaintext: req.Plaintext, Driver: req.Driver, VNI: int64(req.VNI), MTU: int64(req.MTU),
		Gateways: req.Gateways, Ranges: req.Ranges, Reserved: req.Reserved, Internal: req.Internal, NoBroadcast: req.NoBroadcast, Labels: req.Labels,
	}.Network()
	if err != nil {
		return api.Network{}, networkSpecError(err)
	}
	var d definer
	doErr := a.do(ctx, func(_ context.Context, l *loop) {
		d = l.definer
		n, err = l.freshNetwork(n, req.VNI == 0)
	})
	if err := cmp.Or(doErr, err); err != nil {
		return api.Network{}, err
	}
	made, err := d.CreateNetwork(ctx, item.Network{
		Network: record.Network{Name: n.Name, VNI: n.VNI, Encrypted: n.Encrypted, Subnets: n.Subnets, VTEPPort: a.opts.Config.Data.VXLANPort, Options: n.Options},
		Driver:  n.Driver, MTU: uint16(n.MTU), Labels: n.Labels,
	})
	if err != nil {
		return api.Network{}, a.defineError(ctx, req.Name, err)
	}
	return a.network(ctx, made.Name)
}

// networkSpecError says what is wrong with a request, everything at once.
func networkSpecError(err error) error {
	var p *config.Problems
	if !errors.As(err, &p) {
		return err
	}
	var what, hints []string
	for _, q := range p.List {
		what = append(what, q.Key+": "+q.Problem)
		if q.Hint != "" {
			hints = append(hints, q.Hint)
		}
	}
	return typed(api.CodeInvalid, err, strings.Join(what, "; "), strings.Join(hints, "; "))
}

// freshNetwork checks that a network can stand beside all that this node knows of:
// those of the cluster, of its file, and of other nodes' files. If it may, it
// gives it another number.
func (l *loop) freshNetwork(n config.Network, mayRenumber bool) (config.Network, error) {
	others := l.networksKnown()
	if mayRenumber {
		for taken(others, n.VNI) {
			n.VNI = n.VNI%ids.MaxVNI + 1
		}
	}
	for _, o := range others {
		switch {
		case o.Name == n.Name && len(n.Differences(o.Network)) == 0 && !o.cluster:
			continue // a file has it as it is to be
		case o.Name == n.Name:
			return n, typed(api.CodeRefused, item.ErrNameTaken, fmt.Sprintf("there is a network %s already, %s", n.Name, o.where), "choose another name; secure-overlay network ls")
		}
		if err := n.Clash(o.Network); err != nil {
			return n, typed(api.CodeRefused, err, fmt.Sprintf("%v (%s)", err, o.where), "choose another one")
		}
	}
	return n, nil
}

// knownNetwork is a network and where it comes from.
type knownNetwork struct {
	config.Network
	cluster bool
	where   string
}

func taken(list []knownNetwork, vni ids.VNI) bool {
	return slices.ContainsFunc(list, func(o knownNetwork) bool { return o.VNI == vni })
}

// networksKnown lists the networks of the cluster, of the own file, and of the
// records of others.
func (l *loop) networksKnown() []knownNetwork {
	snap := l.gossip.Snapshot()
	var out []knownNetwork
	for _, n := range snap.Networks {
		out = append(out, knownNetwork{asConfig(n), true, "in the cluster"})
	}
	for _, n := range l.cfg.Networks {
		out = append(out, knownNetwork{n, false, "in this node's configuration"})
	}
	for _, m := range snap.Members {
		if m.ID == l.identity.ID {
			continue
		}
		for _, n := range m.Record.Networks {
			if _, ok := clusterNetwork(snap, n.Name); ok {
				continue // it is that one
			}
			out = append(out, knownNetwork{
				config.Network{Name: n.Name, VNI: n.VNI, Subnets: n.Subnets, Encrypted: n.Encrypted, Driver: config.DriverAuto, Options: n.Options},
				false, "on node " + m.Hostname,
			})
		}
	}
	return out
}

// clusterNetwork returns the cluster's network of a name.
func clusterNetwork(snap membership.Snapshot, name string) (item.Network, bool) {
	i := slices.IndexFunc(snap.Networks, func(n item.Network) bool { return n.Name == name })
	if i < 0 {
		return item.Network{}, false
	}
	return snap.Networks[i], true
}

// RemoveNetwork implements api.NetworkDefiner.
func (a *Agent) RemoveNetwork(ctx context.Context, name string, force bool) error {
	var d definer
	var err error
	doErr := a.do(ctx, func(_ context.Context, l *loop) {
		d = l.definer
		if users := l.usersOf(name); len(users) > 0 && !force {
			err = typed(api.CodeRefused, nil, fmt.Sprintf("network %s is in use on %s", name, strings.Join(users, ", ")),
				"detach its endpoints there first; or give --force, which disconnects them")
		}
	})
	if err := cmp.Or(doErr, err); err != nil {
		return err
	}
	if _, err := d.RemoveNetwork(ctx, name); err != nil {
		return a.defineError(ctx, name, err)
	}
	return nil
}

// usersOf names the nodes that have a network of the cluster.
func (l *loop) usersOf(name string) []string {
	snap := l.gossip.Snapshot()
	if _, ok := clusterNetwork(snap, name); !ok {
		return nil
	}
	var out []string
	for _, m := range snap.Members {
		if slices.ContainsFunc(m.Record.Networks, func(n record.Network) bool { return n.Name == name }) {
			out = append(out, m.Hostname)
		}
	}
	return out
}

// defineError says what to do about a network that is not defined.
func (a *Agent) defineError(ctx context.Context, name string, err error) error {
	issuers := func() string {
		out := ""
		_ = a.do(ctx, func(_ context.Context, l *loop) { out = l.issuerNames() })
		return cmp.Or(out, "the one where the cluster was initialised")
	}
	switch {
	case errors.Is(err, membership.ErrNotIssuer), errors.Is(err, membership.ErrIssuerRevoked):
		return typed(api.CodeRefused, err, "this node holds no issuer key that is in force, so it cannot define networks for the cluster",
			"run the command on a node that has one: "+issuers())
	case errors.Is(err, item.ErrNameTaken):
		return typed(api.CodeRefused, err, fmt.Sprintf("there is a network %s already, in the cluster", name), "choose another name; secure-overlay network ls")
	case errors.Is(err, item.ErrLongNetwork):
		return typed(api.CodeInvalid, err, err.Error(), "give it fewer subnets, ranges, reserved addresses or labels")
	case errors.Is(err, item.ErrWeakens):
		return typed(api.CodeRefused, err, fmt.Sprintf("network %s was encrypted, and only the root key may make a plaintext one of that name", name),
			"choose another name, or leave --plaintext out")
	case errors.Is(err, membership.ErrNoNetwork):
		var known []string
		file := false
		_ = a.do(ctx, func(_ context.Context, l *loop) {
			_, file = l.cfg.Network(name)
			for _, n := range l.gossip.Snapshot().Networks {
				known = append(known, n.Name)
			}
		})
		if file {
			return typed(api.CodeRefused, err, fmt.Sprintf("network %s is of this node's configuration, not of the cluster", name), "remove it there")
		}
		return typed(api.CodeNotFound, err, fmt.Sprintf("the cluster has no network %q", name), nearestNetwork(name, known))
	case errors.Is(err, membership.ErrNetworkOld):
		return typed(api.CodeRefused, err, "the network was changed meanwhile", "secure-overlay network inspect, and decide again")
	}
	return rootsError(err, "change")
}

// network shows one network by name.
func (a *Agent) network(ctx context.Context, name string) (api.Network, error) {
	list, err := a.Networks(ctx)
	if err != nil {
		return api.Network{}, err
	}
	i := slices.IndexFunc(list, func(n api.Network) bool { return n.Name == name })
	if i < 0 {
		return api.Network{}, fmt.Errorf("network %s is gone again", name)
	}
	return list[i], nil
}
