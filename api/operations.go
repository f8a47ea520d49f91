package api

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/netdef"
)

func (s *Server) status(r *http.Request) (any, error) {
	st, err := s.opts.Backend.Observer.Status(r.Context())
	if err != nil {
		return nil, err
	}
	st.complete()
	return st, nil
}

func (s *Server) members(r *http.Request) (any, error) {
	list, err := s.opts.Backend.Observer.Members(r.Context())
	return MemberList{Schema: Schema, Members: some(list)}, err
}

func (s *Server) networks(r *http.Request) (any, error) {
	list, err := s.opts.Backend.Observer.Networks(r.Context())
	return NetworkList{Schema: Schema, Networks: some(list)}, err
}

func (s *Server) endpoints(r *http.Request) (any, error) {
	list, err := s.opts.Backend.Observer.Endpoints(r.Context())
	return EndpointList{Schema: Schema, Endpoints: some(list)}, err
}

func (s *Server) tokens(r *http.Request) (any, error) {
	list, err := s.opts.Backend.Tokens.Tokens(r.Context())
	for i := range list {
		list[i] = list[i].complete()
	}
	return TokenList{Schema: Schema, Tokens: some(list)}, err
}

func (s *Server) attach(r *http.Request) (any, error) {
	if err := s.mayChange(r); err != nil {
		return nil, err
	}
	req, err := readBody[AttachRequest](r)
	if err != nil {
		return nil, err
	}
	if err := req.check(); err != nil {
		return nil, err
	}
	ep, err := s.opts.Backend.Attacher.Attach(r.Context(), req)
	return EndpointAnswer{Schema: Schema, Endpoint: ep}, err
}

// places counts how many namespaces the request names.
func (q AttachRequest) places() (n int) {
	for _, given := range []bool{q.Netns != "", q.PID != 0, q.Host} {
		if given {
			n++
		}
	}
	return n
}

// check applies the rules that need no knowledge of the agent's state.
func (q AttachRequest) check() error {
	switch {
	case q.Network == "":
		return NewError(CodeInvalid, "the request names no network", "")
	case q.places() != 1:
		return NewError(CodeInvalid, "give exactly one of a namespace path, a process ID and the host", "")
	case q.Netns != "" && q.Netns[0] != '/':
		return NewError(CodeInvalid, fmt.Sprintf("the namespace path %q is not absolute", q.Netns), "")
	case q.PID < 0:
		return NewError(CodeInvalid, fmt.Sprintf("%d is no process ID", q.PID), "")
	case len(q.Ifname) > MaxIfname:
		return NewError(CodeInvalid, fmt.Sprintf("the interface name %q has %d characters, %d fit", q.Ifname, len(q.Ifname), MaxIfname), "")
	}
	for _, c := range []byte(q.Ifname) {
		if c <= ' ' || c >= 0x7f || c == '/' || c == ':' || c == '%' {
			return NewError(CodeInvalid, fmt.Sprintf("the interface name %q has a character the kernel does not accept", q.Ifname), "")
		}
	}
	if q.Ifname == "." || q.Ifname == ".." {
		return NewError(CodeInvalid, fmt.Sprintf("the kernel does not accept the interface name %q", q.Ifname), "")
	}
	if err := q.checkNames(); err != nil {
		return err
	}
	seen := map[string]bool{}
	for _, a := range q.Addresses {
		if !a.IsValid() || a.Zone() != "" || a.Is4In6() || seen[a.String()] {
			return NewError(CodeInvalid, fmt.Sprintf("%v is not a usable address, or stands twice", a), "")
		}
		seen[a.String()] = true
	}
	return nil
}

// checkNames applies the rules for names, MAC and default route.
func (q AttachRequest) checkNames() error {
	const label = "1 to 63 of a-z 0-9 -, the latter not at the ends"
	switch {
	case q.Name != "" && !netdef.IsDNSLabel(q.Name):
		return NewError(CodeInvalid, fmt.Sprintf("%q is not a name of an endpoint", q.Name), label)
	case len(q.Services) > netdef.MaxServices:
		return NewError(CodeInvalid, fmt.Sprintf("%d services, at most %d", len(q.Services), netdef.MaxServices), "")
	case q.MAC != (ids.MAC{}) && q.MAC[0]&1 != 0:
		return NewError(CodeInvalid, fmt.Sprintf("%s is the address of a group, not of one endpoint", q.MAC), "a MAC whose first byte is even, such as 02:00:00:00:00:01")
	case q.Host && q.DefaultRoute:
		return NewError(CodeInvalid, "the host has ways of its own out", "leave out --default-route")
	}
	for i, s := range q.Services {
		if !netdef.IsDNSLabel(s) || slices.Contains(q.Services[:i], s) {
			return NewError(CodeInvalid, fmt.Sprintf("%q is not the name of a service, or stands twice", s), label)
		}
	}
	return nil
}

// MaxIfname is how many characters the name of a link may have (IFNAMSIZ - 1).
const MaxIfname = 15

func (s *Server) detach(r *http.Request) (any, error) {
	if err := s.mayChange(r); err != nil {
		return nil, err
	}
	if err := noBody(r); err != nil {
		return nil, err
	}
	return Done{Schema: Schema, Done: true}, s.opts.Backend.Attacher.Detach(r.Context(), r.PathValue("id"))
}

func (s *Server) createToken(r *http.Request) (any, error) {
	if err := s.mayChange(r); err != nil {
		return nil, err
	}
	req, err := readBody[TokenRequest](r)
	if err != nil {
		return nil, err
	}
	switch {
	case req.TTL < 0:
		return nil, NewError(CodeInvalid, "the lifetime of a token cannot be negative", "")
	case req.Uses < 0:
		return nil, NewError(CodeInvalid, "a token cannot admit a negative number of nodes", "")
	}
	tok, err := s.opts.Backend.Tokens.CreateToken(r.Context(), req)
	tok.Schema, tok.Token = Schema, tok.complete()
	return tok, err
}

func (s *Server) decideJoin(r *http.Request) (any, error) {
	if err := s.mayChange(r); err != nil {
		return nil, err
	}
	req, err := readBody[JoinDecision](r)
	if err != nil {
		return nil, err
	}
	node, err := s.opts.Backend.Tokens.DecideJoin(r.Context(), r.PathValue("id"), req)
	return JoinDecided{Schema, node, req.Approve}, err
}

func (s *Server) revokeToken(r *http.Request) (any, error) {
	if err := s.mayChange(r); err != nil {
		return nil, err
	}
	if err := noBody(r); err != nil {
		return nil, err
	}
	return Done{Schema: Schema, Done: true}, s.opts.Backend.Tokens.RevokeToken(r.Context(), r.PathValue("id"))
}

func (s *Server) keyStatus(r *http.Request) (any, error) {
	b, err := s.keys()
	if err != nil {
		return nil, err
	}
	k, err := b.Keys(r.Context())
	k.complete()
	return k, err
}

func (s *Server) keyHistory(r *http.Request) (any, error) {
	b, err := s.keys()
	if err != nil {
		return nil, err
	}
	list, err := b.KeyHistory(r.Context())
	return KeyHistory{Schema: Schema, Events: some(list)}, err
}

func (s *Server) rotate(r *http.Request) (any, error) {
	// A dry run is held to the same: who may not rotate has no use for it.
	if err := s.mayChange(r); err != nil {
		return nil, err
	}
	req, err := readBody[RotateRequest](r)
	if err != nil {
		return nil, err
	}
	if err := req.check(); err != nil {
		return nil, err
	}
	b, err := s.keys()
	if err != nil {
		return nil, err
	}
	rot, err := b.Rotate(r.Context(), req)
	rot.Schema, rot.Effects = Schema, some(rot.Effects)
	return rot, err
}

func (s *Server) events(r *http.Request) (any, error) {
	q, err := eventQuery(r.URL.Query())
	if err != nil {
		return nil, err
	}
	if s.opts.Backend.Events == nil {
		return nil, unavailable("event log")
	}
	list, err := s.opts.Backend.Events.Events(r.Context(), q)
	return EventList{Schema: Schema, Events: some(list)}, err
}

// keys returns what answers calls about keys.
func (s *Server) keys() (Keys, error) {
	if s.opts.Backend.Keys == nil {
		return nil, unavailable("key rotation")
	}
	return s.opts.Backend.Keys, nil
}

// metricsType is the content type of Prometheus' text format.
const metricsType = "text/plain; version=0.0.4; charset=utf-8"

func (s *Server) metrics(r *http.Request) (any, error) {
	if s.opts.Metrics == nil {
		return nil, unavailable("metrics")
	}
	var b bytes.Buffer
	if err := s.opts.Metrics(r.Context(), &b); err != nil {
		return nil, err
	}
	return text{metricsType, b.Bytes()}, nil
}

// unavailable is the error of a call that this agent was built without.
func unavailable(what string) *Error {
	return NewError(CodeFailed, "this agent has no "+what, "use the same version of secure-overlay for both")
}

func (s *Server) down(r *http.Request) (any, error) {
	if err := s.mayChange(r); err != nil {
		return nil, err
	}
	req, err := readBody[DownRequest](r)
	if err != nil {
		return nil, err
	}
	res, err := s.opts.Backend.Lifecycle.Down(r.Context(), req)
	res.Schema, res.Removed = Schema, some(res.Removed)
	return res, err
}

// noBody refuses a body where none has a meaning.
func noBody(r *http.Request) error {
	var b [1]byte
	if n, _ := r.Body.Read(b[:]); n > 0 {
		return NewError(CodeInvalid, "the call takes no body", "")
	}
	return nil
}
