package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/netdef"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/vxlan"
	"github.com/secure-overlay/secure-overlay/vxlan/gateway"
)

// exit is the gateway namespace as the loop uses it; *gateway.Namespace.
type exit interface {
	Set(ctx context.Context, spec gateway.Spec) error
	NS() *nl.Namespace
	Remove() error
	Close() error
}

// exits keeps the gateway namespace. It is made when the first endpoint needs it, and
// not before: a node that only carries frames of others has none.
type exits struct {
	open     func() (exit, error) // nil: there is none here
	forwards func(v6 bool) error  // whether the host lets packets of a family through
	ns       exit                 // nil: not needed yet, or not to be had
	made     made[gateway.Spec]   // what it was made to be last
	names    namer                // nil: there is none here
	last     GatewayFacts         // as it was seen last
	failed   error                // why it could not be made
}

// gatewayID is the endpoint ID of the gateway on each network.
const gatewayID = "000000000000"

// GatewayFacts are what Desired knows of the gateway namespace.
type GatewayFacts struct {
	Netns string // path; empty: there is none
	NsID  nl.ID
	// Closed are the subnets of all overlay networks that this node knows of.
	Closed []netip.Prefix
}

// gatewayFacts makes the gateway namespace if an endpoint needs it. One that was
// unbound by somebody is made anew.
func (l *loop) gatewayFacts() GatewayFacts {
	x := &l.exits
	if x.open == nil || len(l.attachments) == 0 && len(l.pending) == 0 && x.ns == nil {
		return GatewayFacts{}
	}
	var facts GatewayFacts
	if facts, x.failed = x.facts(); facts.Netns == "" {
		return facts
	}
	for _, n := range l.networksKnown() {
		facts.Closed = append(facts.Closed, n.Subnets...)
	}
	slices.SortFunc(facts.Closed, netdef.ComparePrefix)
	facts.Closed = slices.Compact(facts.Closed) // each node on a network names it
	return facts
}

// facts opens the namespace, or makes it. One that cannot be looked at now is taken for
// what it was: without it the gateway would go off every network.
func (x *exits) facts() (GatewayFacts, error) {
	if x.ns != nil {
		err := x.bound()
		switch {
		case err == nil:
			return x.last, nil
		case !errors.Is(err, errUnbound) && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, nl.ErrNotNamespace):
			return x.last, err
		}
		_ = x.ns.Close()
		x.ns, x.last = nil, GatewayFacts{}
	}
	if x.names != nil {
		// Its sockets stay in the namespace that they were opened in.
		if err := x.names.Set(nil); err != nil {
			return GatewayFacts{}, err
		}
	}
	ns, err := x.open()
	if err != nil {
		return GatewayFacts{}, err
	}
	id, err := ns.NS().LastingID()
	if err != nil {
		return GatewayFacts{}, errors.Join(err, ns.Close())
	}
	x.ns, x.last = ns, GatewayFacts{Netns: ns.NS().Path(), NsID: id}
	x.made.forget()
	return x.last, nil
}

// errUnbound: the path of the namespace names another one.
var errUnbound = errors.New("path names another namespace")

// close ends the resolvers and lets go of the namespace, which stays.
func (x *exits) close() error {
	var err error
	if x.names != nil {
		err = x.names.Close()
	}
	if x.ns == nil {
		return err
	}
	return errors.Join(err, x.ns.Close())
}

// bound returns errUnbound if the path of the namespace names another one. It is looked at
// in every round, and while the namespace is held open no other has its inode.
func (x *exits) bound() error {
	at, err := nl.OpenNamespace(x.ns.NS().Path())
	if err != nil {
		return err
	}
	defer func() { _ = at.Close() }()
	id, err := at.ID()
	if err != nil {
		return err
	}
	own, err := x.ns.NS().ID()
	if err == nil && id != own {
		err = fmt.Errorf("%w: %s", errUnbound, x.ns.NS().Path())
	}
	return err
}

// settled reports whether what the namespace was made to be needs no look now. Without a way
// out nothing is forwarded, whatever becomes of the rules, and they are looked at less often.
func (x *exits) settled(now time.Time, want gateway.Spec) bool {
	if x.made.still(now, want) {
		return true
	}
	return len(want.Out) == 0 && now.Before(x.made.at.Add(10*resync)) && reflect.DeepEqual(x.made.spec, want)
}

// gatewayOf is the gateway as an endpoint of a network; ok is false if the network needs
// none, or none can be had.
func (b *build) gatewayOf(n *network) (vxlan.Endpoint, bool) {
	if b.in.Gateway.Netns == "" || len(n.local) == 0 {
		return vxlan.Endpoint{}, false
	}
	e := vxlan.Endpoint{
		ID: gatewayID, MAC: gatewayMAC(n.Network), Netns: b.in.Gateway.Netns, NsID: b.in.Gateway.NsID,
		// Every node has this very one: endpoints find the same on all of them, and
		// nobody has to be told where. So it must be nobody else's.
		Ifname: gateway.LinkName(n.VNI), Apart: true,
	}
	for _, s := range n.Subnets {
		e.Addrs = append(e.Addrs, netip.PrefixFrom(n.Gateway(s), s.Bits()))
	}
	return e, true
}

func gatewayMAC(n config.Network) ids.MAC { return ids.EndpointMAC(n.VNI, n.Gateway(n.Subnets[0])) }

// buildGateway says from which networks there is a way out.
func (b *build) buildGateway() {
	b.out.Gateway.Closed = b.in.Gateway.Closed
	for _, n := range b.nets {
		if _, ok := b.gatewayOf(n); !ok || n.Internal || !n.wanted {
			continue
		}
		for _, e := range n.local {
			if len(e.Ways) > 0 {
				b.out.Gateway.Out = append(b.out.Gateway.Out, gateway.Network{Link: gateway.LinkName(n.VNI), Subnets: n.Subnets})
				break
			}
		}
	}
}

// applyGateway makes the way out, or takes it away.
func (l *loop) applyGateway(ctx context.Context) {
	x := &l.exits
	if x.failed != nil {
		l.fail("gateway-failed", "", x.failed)
	}
	if x.ns == nil || x.settled(l.now(), l.out.Gateway) {
		return
	}
	x.made.forget()
	err := x.ns.Set(ctx, l.out.Gateway)
	switch {
	case err == nil:
		x.made.note(l.now(), l.out.Gateway)
	case errors.Is(err, gateway.ErrNoForwarding):
		l.out.View.Problems = append(l.out.View.Problems, api.Problem{
			Code: "no-way-out", Message: "endpoints with a default route get nowhere: " + err.Error(),
			Fix: "sysctl -w net.ipv4.ip_forward=1, and keep it in /etc/sysctl.d; what else this host may forward is for its firewall to say",
		})
	default:
		l.fail("gateway-failed", "", err)
	}
}

// waysOut chooses the gateways of a new endpoint's default routes.
func (l *loop) waysOut(n config.Network, addrs []netip.Prefix) ([]netip.Addr, error) {
	switch {
	case n.Internal:
		return nil, api.NewError(api.CodeRefused, fmt.Sprintf("network %s is internal: there is no way out of it", n.Name), "leave out --default-route")
	case l.exits.ns == nil:
		return nil, typed(api.CodeRefused, l.exits.failed, "there is no gateway namespace on this node", "secure-overlay status says why")
	}
	var out []netip.Addr
	var closed error
	for _, v6 := range []bool{false, true} {
		for _, p := range addrs {
			if p.Addr().Is6() != v6 {
				continue
			}
			if err := l.exits.forwards(v6); err != nil {
				closed = errors.Join(closed, err)
			} else if s, ok := subnetOf(n.Subnets, p.Addr()); ok {
				out = append(out, n.Gateway(s))
			}
			break
		}
	}
	if len(out) == 0 {
		return nil, typed(api.CodeRefused, closed, fmt.Sprintf("there is no way out by this node: %v", closed),
			"sysctl -w net.ipv4.ip_forward=1, and keep it in /etc/sysctl.d; what else this host may forward is for its firewall to say")
	}
	return out, nil
}
