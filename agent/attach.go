package agent

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/membership/record"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// attachTimeout bounds an attach whose caller has no deadline.
const attachTimeout = 30 * time.Second

// hostPath names the namespace that an agent runs in: its main thread never leaves it
// (nl.TestMainThreadStaysHome). So it is the same for the next agent.
const hostPath = "/proc/self/ns/net"

// pendingAttach is a request that waits for an address or for the kernel.
type pendingAttach struct {
	ctx    context.Context
	req    api.AttachRequest
	path   string // of the namespace
	ns     endpointNS
	id     string // of the attachment, once there is one
	made   bool   // by this request, so that its failure undoes it
	last   error  // why it is not done yet
	result chan attachResult
}

type attachResult struct {
	endpoint api.Endpoint
	err      error
}

// Attach implements api.Attacher. The work is the loop's; this goroutine only
// opens the namespace, so that a slow path cannot hold up the loop.
func (a *Agent) Attach(ctx context.Context, req api.AttachRequest) (api.Endpoint, error) {
	ctx, cancel := context.WithTimeout(ctx, attachTimeout)
	defer cancel()
	path := req.Netns
	switch {
	case req.Host:
		path = hostPath
	case req.PID > 0:
		path = fmt.Sprintf("/proc/%d/ns/net", req.PID)
	}
	ns, err := a.openEndpoint(path)
	switch {
	case errors.Is(err, os.ErrNotExist) && req.PID > 0:
		return api.Endpoint{}, typed(api.CodeNotFound, err, fmt.Sprintf("there is no process with PID %d in the agent's PID namespace", req.PID), "")
	case errors.Is(err, os.ErrNotExist):
		return api.Endpoint{}, typed(api.CodeNotFound, err, "there is no namespace at "+path, "ip netns list shows the names under /run/netns")
	case errors.Is(err, nl.ErrNotNamespace):
		return api.Endpoint{}, typed(api.CodeInvalid, err, path+" is not a network namespace", "give a path such as /run/netns/NAME or /proc/PID/ns/net")
	case err != nil:
		return api.Endpoint{}, err
	}
	defer ns.Close()
	p := &pendingAttach{ctx: ctx, req: req, path: path, ns: ns, result: make(chan attachResult, 1)}
	if err := a.do(ctx, func(ctx context.Context, l *loop) {
		l.pending = append(l.pending, p)
		l.turn(ctx)
	}); err != nil {
		return api.Endpoint{}, err
	}
	select {
	case r := <-p.result:
		return r.endpoint, r.err
	case <-ctx.Done():
		// The loop finds the context ended and undoes what it began; it has
		// the last word, since it may just have finished.
		return a.afterTimeout(p)
	case <-a.stopped:
		return api.Endpoint{}, errStopped()
	}
}

// afterTimeout makes the loop decide about a request whose time is over.
func (a *Agent) afterTimeout(p *pendingAttach) (api.Endpoint, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(p.ctx), roundTimeout)
	defer cancel()
	if err := a.do(ctx, func(_ context.Context, l *loop) { l.dropCancelled() }); err != nil {
		return api.Endpoint{}, err
	}
	r := <-p.result
	return r.endpoint, r.err
}

// Detach implements api.Attacher.
func (a *Agent) Detach(ctx context.Context, id string) error {
	var err error
	if doErr := a.do(ctx, func(ctx context.Context, l *loop) { err = l.detach(ctx, id) }); doErr != nil {
		return doErr
	}
	return err
}

func (l *loop) detach(ctx context.Context, id string) error {
	var found []int
	for i, at := range l.attachments {
		if at.ID == id {
			found = []int{i}
			break
		}
		if id != "" && strings.HasPrefix(at.ID, id) {
			found = append(found, i)
		}
	}
	switch len(found) {
	case 1:
	case 0:
		return api.NewError(api.CodeNotFound, fmt.Sprintf("this node has no endpoint %q", id), "secure-overlay endpoint ls")
	default:
		return api.NewError(api.CodeInvalid, fmt.Sprintf("%q is the beginning of %d endpoint IDs", id, len(found)), "give more characters of the ID")
	}
	at := l.attachments[found[0]]
	if err := l.remove(at.ID); err != nil {
		return err
	}
	l.log.Info("endpoint detached", logkey.Endpoint, at.ID, logkey.Network, at.Network)
	l.turn(ctx)
	if err := l.failed(at.Network, at.ID); err != nil {
		return fmt.Errorf("endpoint %s is detached, but its link could not be removed yet: %w", at.ID, err)
	}
	return nil
}

// allocate gives the waiting requests addresses, as far as there are any.
func (l *loop) allocate(in *Input) {
	if len(l.pending) == 0 {
		return
	}
	out := Desired(*in)
	for _, p := range slices.Clone(l.pending) {
		if p.id != "" {
			continue
		}
		at, err := l.prepare(*in, out, p)
		var wait *waitError
		switch {
		case errors.As(err, &wait):
			p.last = err
		case err != nil:
			l.settle(p, api.Endpoint{}, err)
		default:
			p.id = at.ID
		}
		in.Attachments = l.attachments
	}
}

// waitError says that a request cannot go on yet.
type waitError struct{ why string }

func (e *waitError) Error() string { return e.why }

// prepare checks a request against what is known now and makes the
// attachment, or finds the one that an equal request made.
func (l *loop) prepare(in Input, out Output, p *pendingAttach) (Attachment, error) {
	n, ok := l.here.Network(p.req.Network)
	if !ok {
		return Attachment{}, l.unknownNetwork(p.req.Network)
	}
	i := slices.IndexFunc(out.View.Networks, func(v NetworkView) bool { return v.Name == n.Name })
	view := out.View.Networks[i]
	if !view.Wanted {
		return Attachment{}, api.NewError(api.CodeRefused, fmt.Sprintf("network %s is not available on this node: %s", n.Name, view.Reason), "secure-overlay doctor")
	}
	if l.ns.ours(p.ns.ID()) {
		return Attachment{}, api.NewError(api.CodeRefused, p.path+" is a namespace of secure-overlay itself", "attach the namespace of a container or process")
	}
	if at, err := l.repeated(n, p); err != nil || at.ID != "" {
		return at, err
	}
	if len(l.attachments) >= record.MaxAttached {
		return Attachment{}, api.NewError(api.CodeRefused, fmt.Sprintf("this node has %d endpoints, which is the most", len(l.attachments)), "attach it on another node")
	}
	if p.req.Host {
		if err := l.hostMayJoin(in, n); err != nil {
			return Attachment{}, err
		}
	}
	addrs, err := l.addresses(in, view, n, p.req.Addresses)
	if err != nil {
		return Attachment{}, err
	}
	ifname, err := l.ifname(p)
	if err != nil {
		return Attachment{}, err
	}
	at := Attachment{
		ID: newID(), Network: n.Name, Netns: p.path, NsID: p.ns.ID(), Addrs: addrs, Ifname: ifname,
		MAC: p.req.MAC, Name: p.req.Name, Services: slices.Sorted(slices.Values(p.req.Services)),
	}
	if err := l.complete(in, n, p, &at); err != nil {
		return Attachment{}, err
	}
	l.attachments = append(slices.Clone(l.attachments), at)
	// On disk before in the kernel: a crash in between leaves an attachment
	// that the next agent makes, not a link that nobody knows.
	if err := l.files.saveAttachments(l.attachments); err != nil {
		l.attachments = l.attachments[:len(l.attachments)-1]
		return Attachment{}, err
	}
	p.made = true
	return at, nil
}

// hostMayJoin refuses a network that would lead the host's own traffic, and with it
// the tunnels, into itself: the host gets a route to each of its subnets.
func (l *loop) hostMayJoin(in Input, n config.Network) error {
	refuse := func(s netip.Prefix, a netip.Addr, whose string) error {
		return api.NewError(api.CodeRefused, fmt.Sprintf("subnet %s of network %s holds %s, the address of %s: the way there would lead into the network", s, n.Name, a, whose),
			"give the network another subnet; or attach a network namespace instead of the host")
	}
	own, err := l.host.GlobalAddrs()
	if err != nil {
		return fmt.Errorf("look at the host's addresses: %w", err)
	}
	for _, s := range n.Subnets {
		for _, a := range own {
			if s.Contains(a.Addr) {
				return refuse(s, a.Addr, a.Device)
			}
		}
		for _, m := range in.Members {
			for _, u := range m.Record.Underlay {
				if s.Contains(u.Control.Addr()) {
					return refuse(s, u.Control.Addr(), "node "+m.title())
				}
			}
		}
	}
	return nil
}

// repeated finds the attachment that an equal request made before. Another
// request for the same namespace and network contradicts it.
func (l *loop) repeated(n config.Network, p *pendingAttach) (Attachment, error) {
	i := slices.IndexFunc(l.attachments, func(at Attachment) bool { return at.Network == n.Name && at.NsID == p.ns.ID() })
	if i < 0 {
		return Attachment{}, nil
	}
	at := l.attachments[i]
	differs := p.req.Ifname != "" && p.req.Ifname != at.Ifname || p.req.Name != "" && p.req.Name != at.Name ||
		p.req.MAC != (ids.MAC{}) && p.req.MAC != macOf(n, at) || p.req.DefaultRoute && len(at.Ways) == 0 ||
		len(p.req.Services) > 0 && !slices.Equal(slices.Sorted(slices.Values(p.req.Services)), at.Services)
	for _, a := range p.req.Addresses {
		differs = differs || !slices.ContainsFunc(at.Addrs, func(have netip.Prefix) bool { return have.Addr() == a })
	}
	if differs {
		return Attachment{}, api.NewError(api.CodeRefused,
			fmt.Sprintf("the namespace is on network %s already, as %s with %s", n.Name, at.Ifname, addrText(at.Addrs)),
			"secure-overlay detach "+at.ID)
	}
	return at, nil
}

// answer finishes the requests whose endpoint the kernel has, or cannot get.
func (l *loop) answer() {
	for _, p := range slices.Clone(l.pending) {
		if p.id == "" {
			continue
		}
		i := l.indexOf(p.id)
		if i < 0 {
			l.settle(p, api.Endpoint{}, typed(api.CodeNotFound, vxlan.ErrEndpointGone, "the namespace went away meanwhile", ""))
			continue
		}
		at := l.attachments[i]
		if reason, ok := l.out.View.Endpoints[p.id]; ok {
			l.undo(p, api.NewError(api.CodeRefused, reason, ""))
			continue
		}
		err := l.failed(at.Network, at.ID)
		switch {
		case err == nil && at.Ready:
			if p.made {
				l.log.Info("endpoint attached", logkey.Endpoint, at.ID, logkey.Network, at.Network, logkey.Addr, addrText(at.Addrs))
			}
			l.settle(p, l.endpoint(at), nil)
		case errors.Is(err, vxlan.ErrNameTaken):
			l.undo(p, typed(api.CodeRefused, err, fmt.Sprintf("the namespace has a link %s already", at.Ifname), "give another name with --ifname"))
		case errors.Is(err, vxlan.ErrRouteTaken):
			l.undo(p, typed(api.CodeRefused, err, vxlan.ErrRouteTaken.Error()+" already", "leave out --default-route, or delete that route first"))
		case err != nil:
			p.last = err // perhaps the next round can
		}
	}
}

// dropCancelled undoes requests whose caller has given up.
func (l *loop) dropCancelled() {
	for _, p := range slices.Clone(l.pending) {
		if p.ctx.Err() == nil {
			continue
		}
		why := "the endpoint was not ready in time"
		if p.last != nil {
			why += ": " + p.last.Error()
		}
		l.undo(p, typed(api.CodeTimeout, p.ctx.Err(), why, "secure-overlay status"))
	}
}

// undo takes back what a failed request has made.
func (l *loop) undo(p *pendingAttach, err error) {
	if p.made {
		err = errors.Join(err, l.remove(p.id))
	}
	l.settle(p, api.Endpoint{}, err)
}

func (l *loop) settle(p *pendingAttach, e api.Endpoint, err error) {
	l.pending = slices.DeleteFunc(l.pending, func(q *pendingAttach) bool { return q == p })
	p.result <- attachResult{endpoint: e, err: err}
}

// remove forgets an attachment; the next round removes its link.
func (l *loop) remove(id string) error {
	l.attachments = slices.DeleteFunc(slices.Clone(l.attachments), func(at Attachment) bool { return at.ID == id })
	return l.files.saveAttachments(l.attachments)
}

// dropEndpoint forgets an endpoint whose namespace has ended. Its end of the
// veth ended with it.
func (l *loop) dropEndpoint(id string, err error) {
	i := l.indexOf(id)
	if i < 0 {
		return
	}
	l.log.Info("endpoint dropped", logkey.Endpoint, id, logkey.Network, l.attachments[i].Network, logkey.Error, err)
	if err := l.remove(id); err != nil {
		l.fail("state-not-saved", l.files.dir, err)
	}
}

func (l *loop) indexOf(id string) int {
	return slices.IndexFunc(l.attachments, func(at Attachment) bool { return at.ID == id })
}

// newID makes an endpoint's ID.
func newID() string {
	var raw [6]byte
	_, _ = rand.Read(raw[:]) // never fails: crypto/rand ends the process instead
	return hex.EncodeToString(raw[:])
}

func typed(code api.Code, cause error, message, fix string) error {
	e := api.NewError(code, message, fix)
	e.Err = cause
	return e
}

// endpoint describes a local attachment.
func (l *loop) endpoint(at Attachment) api.Endpoint {
	e := api.Endpoint{
		ID: at.ID, Network: at.Network, Local: true, Node: l.self(),
		Addresses: at.Addrs, Netns: at.Netns, Ifname: at.Ifname, State: api.StateOK,
		Name: at.Name, Services: at.Services, DefaultRoutes: at.Ways,
	}
	if n, ok := l.here.Network(at.Network); ok {
		e.MAC = macOf(n, at)
		if l.exits.ns != nil {
			for _, s := range n.Subnets {
				e.Resolvers = append(e.Resolvers, n.Gateway(s))
			}
		}
	}
	for _, s := range l.out.Networks {
		if s.Network == at.Network {
			e.MTU = s.MTU
		}
	}
	if reason, ok := l.out.View.Endpoints[at.ID]; ok {
		e.State, e.Problem = api.StateFailed, reason
	} else if err := l.failed(at.Network, at.ID); err != nil {
		e.State, e.Problem = api.StateFailed, err.Error()
	} else if !at.Ready {
		e.State = api.StateStarting
	}
	return e
}
