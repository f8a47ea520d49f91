package agent

import (
	"cmp"
	"errors"
	"slices"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/tunnel"
	"github.com/secure-overlay/secure-overlay/tunnel/secure"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// failure is something that did not work in a round.
type failure struct {
	api.Problem
	network  string // set if one network is to blame
	endpoint string // set if one endpoint is to blame
	blocking bool   // the kernel does not match the configuration because of it
	err      error
}

// fail notes an error of this round. It is shown in status and logged once.
func (l *loop) fail(code, subject string, err error) {
	f := failure{Problem: api.Problem{Code: code, Subject: subject, Message: err.Error()}, err: err, blocking: true}
	var (
		peer    *tunnel.PeerError
		route   *secure.RouteError
		network *vxlan.Error
		typed   *api.Error
	)
	switch {
	case errors.As(err, &peer):
		// A peer's fault does not keep this node from being ready.
		f.Code, f.Subject, f.blocking = "peer-failed", peer.Peer.String(), false
	case errors.As(err, &network):
		f.network, f.endpoint = network.Network, network.Endpoint
		f.Subject = cmp.Or(network.Endpoint, network.Network)
		if network.Endpoint != "" {
			f.Code, f.blocking = "endpoint-failed", false
		}
	case errors.Is(err, secure.ErrForeignLink):
		f.Code, f.blocking = "foreign-link", false
		f.Fix = "find out who put the link there and delete it; encrypted traffic does not use it"
	case errors.As(err, &route):
		f.Subject, f.blocking = route.Route.Peer.String(), false
	case errors.As(err, &typed):
		f.Fix = typed.Fix
	}
	switch {
	case errors.Is(err, vxlan.ErrVNITaken):
		f.Fix = "delete the other VXLAN device, or give the network another vni on all nodes"
	case errors.Is(err, vxlan.ErrNameTaken):
		f.Fix = "detach the endpoint and attach it again with another --ifname"
	}
	l.failures = append(l.failures, f)
}

// failAll notes each of a joined error's parts.
func (l *loop) failAll(code, subject string, err error) {
	for _, e := range flatten(err) {
		l.fail(code, subject, e)
	}
}

// flatten takes joined errors apart; a wrapped join stays in one piece, so
// that the words around it are not lost.
func flatten(err error) []error {
	joined, ok := err.(interface{ Unwrap() []error }) //nolint:errorlint // only the outermost is a list
	if !ok {
		return []error{err}
	}
	var out []error
	for _, e := range joined.Unwrap() {
		out = append(out, flatten(e)...)
	}
	return out
}

// failed returns the error that keeps an endpoint, or all of its network,
// from working.
func (l *loop) failed(network, endpoint string) error {
	for _, f := range l.failures {
		if f.network == network && (f.endpoint == "" || f.endpoint == endpoint) {
			return f.err
		}
	}
	return nil
}

// problems is everything that is wrong now, what the definitions say first.
func (l *loop) problems() []api.Problem {
	out := slices.Clone(l.out.View.Problems)
	for _, f := range l.failures {
		out = append(out, f.Problem)
	}
	return out
}

// report logs problems that are new and those that are over, each once.
func (l *loop) report() {
	now := map[api.Problem]bool{}
	for _, p := range l.problems() {
		if !l.reported[p] && !now[p] {
			l.log.Warn("problem", logkey.Reason, p.Code, logkey.Error, p.Message, logkey.Subject, p.Subject)
		}
		now[p] = true
	}
	for p := range l.reported {
		if !now[p] {
			l.log.Info("problem is over", logkey.Reason, p.Code, logkey.Error, p.Message, logkey.Subject, p.Subject)
		}
	}
	l.reported = now
	l.reportTunnels()
}

// reportTunnels logs each tunnel that comes up or goes quiet.
func (l *loop) reportTunnels() {
	for _, p := range l.out.View.Peers {
		if !p.Tunnel {
			continue
		}
		up := l.tunnelState(p) == api.TunnelUp
		switch was := l.tunnelsUp[p.ID]; {
		case up && !was:
			l.log.Info("tunnel is up", logkey.Node, p.ID, logkey.Name, p.Name, logkey.Driver, l.driverTo(p.ID))
		case !up && was:
			l.log.Info("tunnel is quiet", logkey.Node, p.ID, logkey.Name, p.Name, logkey.Driver, l.driverTo(p.ID))
		}
		l.tunnelsUp[p.ID] = up
	}
}
