package gateway

import (
	"context"
	"errors"
	"fmt"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// Namespace is the gateway namespace of one agent. It is used by one goroutine at a
// time.
type Namespace struct {
	node  ids.NodeID
	host  *nl.Namespace
	hostH *nl.Handle
	ns    *nl.Namespace
	h     *nl.Handle
}

// Ensure creates the gateway namespace bound at path, or adopts the one that is there.
// What an adopted one lets through goes on until Set decides about it. The host's
// namespace stays the caller's. The node is for the mark on links.
func Ensure(path string, node ids.NodeID, host *nl.Namespace) (*Namespace, error) {
	ns, _, err := nl.EnsureNamespace(path)
	if err != nil {
		return nil, fmt.Errorf("ensure gateway namespace: %w", err)
	}
	n := &Namespace{node: node, host: host, ns: ns}
	if err := n.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("ensure gateway namespace %s: %w", path, err), n.Close())
	}
	return n, nil
}

func (n *Namespace) prepare() error {
	own, err := n.ns.ID()
	if err != nil {
		return err
	}
	if hosts, err := n.host.ID(); err != nil || own == hosts {
		// Its rules and routes are none for a host.
		return errors.Join(errors.New("path names the host's namespace"), err)
	}
	if n.h, err = n.ns.Handle(); err != nil {
		return err
	}
	if n.hostH, err = n.host.Handle(); err != nil {
		return err
	}
	if err := n.h.LoopbackUp(); err != nil {
		return err
	}
	there, err := tableOf(n.ns).there()
	if err != nil || there {
		return err
	}
	// A new namespace takes IPv4 forwarding over from the host's. And nothing here has
	// a use for link-local addresses.
	_, err = n.ns.SetSysctls([]nl.Sysctl{{Key: "ipv6/conf/default/addr_gen_mode", Value: "1", Optional: true}})
	return errors.Join(err, n.forward(false))
}

// NS returns the namespace. It is valid until Close or Remove.
func (n *Namespace) NS() *nl.Namespace { return n.ns }

// forward lets packets through, or does not.
func (n *Namespace) forward(yes bool) error {
	value := "0"
	if yes {
		value = "1"
	}
	_, err := n.ns.SetSysctls([]nl.Sysctl{
		{Key: "ipv4/ip_forward", Value: value},
		{Key: "ipv6/conf/all/forwarding", Value: value, Optional: true},
		{Key: "ipv6/conf/default/accept_ra", Value: "0", Optional: true},
		{Key: "ipv6/conf/all/accept_redirects", Value: "0", Optional: true},
		{Key: "ipv4/conf/all/accept_redirects", Value: "0"},
		{Key: "ipv4/conf/all/send_redirects", Value: "0"},
		{Key: "ipv4/conf/default/send_redirects", Value: "0"},
	})
	return err
}

// Set makes the namespace match spec, by difference. If anything of the way out cannot
// be as it should, there is none. The error matches ErrNoForwarding if the host
// lets nothing through.
func (n *Namespace) Set(ctx context.Context, spec Spec) error {
	err := errors.Join(ctx.Err(), spec.check())
	if err == nil {
		// Also where nothing gets out: what comes in from the networks is for the
		// resolver, and for nothing else that may listen here.
		err = tableOf(n.ns).set(insideChains(spec))
	}
	switch {
	case err != nil:
	case len(spec.Out) == 0:
		return errors.Join(n.forward(false), n.dropUplink())
	default:
		if err = n.open(spec); err == nil {
			return n.forward(true)
		}
	}
	// Fail closed: without its rules the namespace would be a router between networks.
	return errors.Join(fmt.Errorf("set gateway: %w", err), n.forward(false))
}

// open makes the way out.
func (n *Namespace) open(spec Spec) error {
	if err := Forwards(n.host, false); err != nil && Forwards(n.host, true) != nil {
		return err
	}
	// The host's rules are there before the link that they are about.
	if err := tableOf(n.host).set(hostChains()); err != nil {
		return err
	}
	if err := n.uplink(); err != nil {
		return err
	}
	return n.routes(spec.Closed)
}

// Forwards returns ErrNoForwarding, with the setting that is missing, if a host does
// not forward packets of a family. It is the host's to decide: forwarding concerns all
// of its links.
func Forwards(host *nl.Namespace, v6 bool) error {
	key, name := "ipv4/ip_forward", "net.ipv4.ip_forward"
	if v6 {
		key, name = "ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"
	}
	drift, err := host.SysctlDrift([]nl.Sysctl{{Key: key, Value: "1"}})
	if err != nil {
		return err
	}
	if len(drift) > 0 {
		return fmt.Errorf("%w: %s is 0", ErrNoForwarding, name)
	}
	return nil
}

// Remove takes away the uplink, the host's table and the namespace, and closes n.
func (n *Namespace) Remove() error {
	path := n.ns.Path()
	return errors.Join(n.dropUplink(), n.Close(), nl.RemoveNamespace(path))
}

// Close releases the references; the namespace stays.
func (n *Namespace) Close() error {
	for _, h := range []*nl.Handle{n.h, n.hostH} {
		if h != nil {
			h.Close()
		}
	}
	return n.ns.Close()
}
