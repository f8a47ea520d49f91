package membership

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

// Errors of CreateNetwork, ChangeNetwork and RemoveNetwork, besides ErrNotRunning, ErrNotIssuer,
// ErrIssuerRevoked, and item.ErrWeakens, item.ErrMalformed and item.ErrNameTaken
// (wrapped).
var (
	// ErrNoNetwork: the cluster has no network of that name.
	ErrNoNetwork = errors.New("cluster has no such network")
	// ErrNetworkOld: the cluster has a newer definition than the one that was given.
	ErrNetworkOld = errors.New("cluster has a newer definition of the network")
)

// CreateNetwork gives the cluster a network, and returns it when this node's
// Snapshot shows it. Like revocations this is for this node's operator only.
func (c *Cluster) CreateNetwork(_ context.Context, n item.Network) (item.Network, error) {
	n, err := c.defineNetwork(c.now(), n.Name, func(_ item.Network, there bool) (item.Network, error) {
		if there {
			return item.Network{}, item.ErrNameTaken
		}
		n.Removed = false
		return n, nil
	})
	if err != nil {
		return item.Network{}, fmt.Errorf("create network: %w", err)
	}
	return n, nil
}

// ChangeNetwork makes of a network what change makes of it, and returns it when this
// node's Snapshot shows it. An error of change is returned, wrapped.
func (c *Cluster) ChangeNetwork(_ context.Context, name string, change func(item.Network) (item.Network, error)) (item.Network, error) {
	n, err := c.defineNetwork(c.now(), name, func(have item.Network, there bool) (item.Network, error) {
		if !there {
			return item.Network{}, ErrNoNetwork
		}
		return change(have)
	})
	if err != nil {
		return item.Network{}, fmt.Errorf("change network %q: %w", name, err)
	}
	return n, nil
}

// SetNetwork takes in what the root has signed about a network
// (item.NetworkContent), on any node.
func (c *Cluster) SetNetwork(raw []byte) (item.Network, error) {
	it, err := c.takeRoots(c.now(), raw, item.KindNetwork, ErrNetworkOld)
	if err != nil {
		return item.Network{}, fmt.Errorf("set network: %w", err)
	}
	n, _ := it.Network()
	return n, nil
}

// RemoveNetwork takes a network out of the cluster, and returns what it was when
// this node's Snapshot shows that it is gone. Nodes on which something uses it
// take it down at once.
func (c *Cluster) RemoveNetwork(_ context.Context, name string) (item.Network, error) {
	n, err := c.defineNetwork(c.now(), name, func(have item.Network, there bool) (item.Network, error) {
		if !there {
			return item.Network{}, ErrNoNetwork
		}
		have.Removed, have.Moving = true, false
		return have, nil
	})
	if err != nil {
		return item.Network{}, fmt.Errorf("remove network %q: %w", name, err)
	}
	return n, nil
}

// defineNetwork signs what change makes of a network, there telling whether it is
// one that is not removed.
func (c *Cluster) defineNetwork(now time.Time, name string, change func(have item.Network, there bool) (item.Network, error)) (item.Network, error) {
	if !c.running.Load() {
		return item.Network{}, ErrNotRunning
	}
	// Held from the look at the network to its change, so that of two commands at
	// once the second sees what the first has made.
	c.rotating.Lock()
	defer c.rotating.Unlock()
	set := &c.view.Load().cluster
	have, known := set.Network(name)
	n, err := change(have, known && !have.Removed)
	if err != nil {
		return item.Network{}, err
	}
	signer := c.signer()
	switch {
	case c.opts.Signer == nil:
		return item.Network{}, ErrNotIssuer
	case signer == nil:
		return item.Network{}, ErrIssuerRevoked
	}
	it, err := set.SignNetwork(now, c.opts.Identity.Trust, signer, n)
	if err != nil {
		return item.Network{}, err
	}
	if err := c.items.merge([]*item.Item{it}, true); err != nil {
		return item.Network{}, err
	}
	is, ok := c.view.Load().cluster.Network(name)
	if !ok || is.Removed != n.Removed {
		return item.Network{}, errors.New("set of cluster items has no room for it, or another issuer changed it at once")
	}
	return is, nil
}

// noteNetwork tells of a network that has changed.
func (l *loop) noteNetwork(n item.Network) {
	what := "cluster has a network"
	if n.Removed {
		what = "network is removed from the cluster"
	}
	l.c.log.Info(what, logkey.Network, n.Name, logkey.Encrypt, !n.Clear())
}
