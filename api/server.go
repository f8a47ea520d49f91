package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/internal/nearest"
)

// Limits of the server.
const (
	maxBody      = 64 << 10
	readTimeout  = 10 * time.Second // of a call that changes nothing
	writeTimeout = 60 * time.Second // of a call that changes something
	drainTimeout = 5 * time.Second  // for calls under way when the server ends
)

// ServerOptions configures a Server.
type ServerOptions struct {
	Path    string // of the socket; its folder must exist
	Group   string // whose members may read; empty: only the socket's owner and root
	Backend Backend
	// Metrics writes the agent's metrics in Prometheus' text format; nil: the
	// server answers that there are none. Package api/metrics has one.
	Metrics func(ctx context.Context, w io.Writer) error
	Log     *slog.Logger
}

// Server answers on the control socket. Use it as NewServer, Listen, Run.
type Server struct {
	opts ServerOptions
	uid  uint32 // of the agent
	ln   net.Listener
}

// NewServer returns a server that does nothing yet.
func NewServer(o ServerOptions) *Server {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Server{opts: o, uid: uint32(os.Geteuid())}
}

// Listen makes the socket, so that a caller knows that it is there before it
// goes on. It fails with CodeRefused if another agent answers there.
func (s *Server) Listen() error {
	l, err := listenUnix(s.opts.Path, s.opts.Group)
	if err != nil {
		return err
	}
	s.ln = l
	return nil
}

// Run serves until ctx ends, gives calls under way five seconds to finish,
// and removes the socket. The error is nil when ctx ended.
func (s *Server) Run(ctx context.Context) error {
	if s.ln == nil {
		return errors.New("serve control socket: Listen was not called")
	}
	srv := &http.Server{
		Handler:           s.handler(),
		ConnContext:       withCaller,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      writeTimeout + 10*time.Second,
		IdleTimeout:       time.Minute,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(s.opts.Log.Handler(), slog.LevelWarn),
	}
	done := make(chan error, 1)
	go func() { done <- srv.Serve(s.ln) }()
	select {
	case err := <-done:
		_ = s.ln.Close()
		return fmt.Errorf("serve control socket: %w", err)
	case <-ctx.Done():
	}
	drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTimeout)
	defer cancel()
	if err := srv.Shutdown(drain); err != nil {
		s.opts.Log.Warn("control calls cut off", logkey.Error, err)
		_ = srv.Close()
	}
	if err := <-done; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve control socket: %w", err)
	}
	return nil
}

// call is one operation. Its result is marshalled as the answer, unless it
// is a text.
type call func(r *http.Request) (any, error)

// text is an answer that is no JSON.
type text struct {
	contentType string
	body        []byte
}

// methods maps the methods of one path to their operations.
type methods map[string]call

// route is one path of the API.
type route struct {
	path    string
	methods methods
	params  []string // query parameters that it takes
}

// routes lists all calls. Every method but GET changes something, and asks
// mayChange before anything else.
func (s *Server) routes() []route {
	return []route{
		{"/v1/status", methods{http.MethodGet: s.status}, nil},
		{"/v1/members", methods{http.MethodGet: s.members}, nil},
		{"/v1/networks", methods{http.MethodGet: s.networks, http.MethodPost: s.createNetwork}, nil},
		{"/v1/networks/{name}", methods{http.MethodPost: s.updateNetwork, http.MethodDelete: s.removeNetwork}, []string{"force"}},
		{"/v1/endpoints", methods{http.MethodGet: s.endpoints, http.MethodPost: s.attach}, nil},
		{"/v1/endpoints/{id}", methods{http.MethodDelete: s.detach}, nil},
		{"/v1/tokens", methods{http.MethodGet: s.tokens, http.MethodPost: s.createToken}, nil},
		{"/v1/tokens/{id}", methods{http.MethodDelete: s.revokeToken}, nil},
		{"/v1/tokens/{id}/decision", methods{http.MethodPost: s.decideJoin}, nil},
		{"/v1/issuers", methods{http.MethodGet: s.issuers}, nil},
		{"/v1/issuers/request", methods{http.MethodPost: s.requestIssuer}, nil},
		{"/v1/issuers/install", methods{http.MethodPost: s.installIssuer}, nil},
		{"/v1/issuers/revocations/request", methods{http.MethodPost: s.requestIssuerRevocation}, nil},
		{"/v1/issuers/revocations", methods{http.MethodPost: s.revokeIssuer}, nil},
		{"/v1/keys", methods{http.MethodGet: s.keyStatus}, nil},
		{"/v1/keys/rotate", methods{http.MethodPost: s.rotate}, nil},
		{"/v1/keys/history", methods{http.MethodGet: s.keyHistory}, nil},
		{"/v1/protocol", methods{http.MethodGet: s.protocol}, nil},
		{"/v1/protocol/floor", methods{http.MethodPost: s.setFloor}, nil},
		{"/v1/revocations", methods{http.MethodGet: s.revocations, http.MethodPost: s.revoke}, nil},
		{"/v1/leave", methods{http.MethodGet: s.departure, http.MethodPost: s.leave}, nil},
		{"/v1/leave/finish", methods{http.MethodPost: s.finishLeave}, nil},
		{"/v1/events", methods{http.MethodGet: s.events}, []string{"since", "after", "kind", "limit"}},
		{"/v1/metrics", methods{http.MethodGet: s.metrics}, nil},
		{"/v1/reload", methods{http.MethodPost: s.reload}, nil},
		{"/v1/down", methods{http.MethodPost: s.down}, nil},
	}
}

func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	for _, r := range s.routes() {
		mux.Handle(r.path, s.serve(r.methods, r.params...))
	}
	mux.Handle("/", s.serve(nil))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// The mux would redirect an unclean path; there is no good reason
		// for a client of ours to send one.
		if path.Clean(r.URL.Path) != r.URL.Path {
			writeError(w, noSuchPath(r))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func noSuchPath(r *http.Request) *Error {
	return &Error{Code: CodeNotFound, Message: fmt.Sprintf("the agent has no call %q", r.URL.Path)}
}

// serve runs the operation of the request's method and writes its answer.
// params are the query parameters that it takes.
func (s *Server) serve(m methods, params ...string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		op, ok := m[r.Method]
		switch {
		case len(m) == 0:
			writeError(w, noSuchPath(r))
			return
		case !ok:
			writeError(w, &Error{Code: CodeInvalid, Message: fmt.Sprintf("the agent has no %s on %q", r.Method, r.URL.Path)})
			return
		}
		if err := checkParams(r.URL.RawQuery, params); err != nil {
			writeError(w, err)
			return
		}
		limit := readTimeout
		if r.Method != http.MethodGet {
			limit = writeTimeout
		}
		ctx, cancel := context.WithTimeout(r.Context(), limit)
		defer cancel()
		r = r.WithContext(ctx)
		r.Body = http.MaxBytesReader(w, r.Body, maxBody)
		answer, err := op(r)
		if err != nil {
			if r.Method != http.MethodGet {
				s.opts.Log.Info("control call failed", append(callAttrs(r), logkey.Error, err)...)
			}
			writeError(w, err)
			return
		}
		if r.Method != http.MethodGet {
			// The path names the object; the answer, which may hold a new
			// token, is never logged.
			s.opts.Log.Info("control call", callAttrs(r)...)
		}
		if t, ok := answer.(text); ok {
			w.Header().Set("Content-Type", t.contentType)
			w.Header().Set("Cache-Control", "no-store")
			_, _ = w.Write(t.body) // the caller may have gone away
			return
		}
		writeJSON(w, http.StatusOK, answer)
	})
}

// checkParams refuses parameters that a call does not know: they would be
// ignored in silence.
func checkParams(query string, known []string) error {
	if query == "" {
		return nil
	}
	if len(known) == 0 {
		return NewError(CodeInvalid, "the call takes no query parameters", "")
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return NewError(CodeInvalid, "the query cannot be read: "+err.Error(), "")
	}
	for name := range values {
		if slices.Contains(known, name) {
			continue
		}
		hint := "known: " + strings.Join(known, ", ")
		if near, ok := nearest.Of(name, known); ok {
			hint = fmt.Sprintf("did you mean %q?", near)
		}
		return NewError(CodeInvalid, fmt.Sprintf("the call has no parameter %q (%s)", shorten(name), hint), "")
	}
	return nil
}

func callAttrs(r *http.Request) []any {
	c, _ := callerOf(r.Context())
	return []any{logkey.Call, r.Method + " " + r.URL.Path, logkey.UID, c.UID, logkey.PID, c.PID}
}

// mayChange refuses callers that are neither root nor the user the agent runs
// as, and those in a container, whoever they are there. Each operation that changes
// something calls it first: access to the socket alone (its group, or a mount)
// allows reading only.
func (s *Server) mayChange(r *http.Request) error {
	c, ok := callerOf(r.Context())
	switch {
	case !ok || c.UID != 0 && c.UID != s.uid:
		return &Error{Code: CodePermission, Message: "only root may change the agent's state", Fix: "run the command with sudo"}
	case !c.Near:
		return &Error{Code: CodePermission, Message: "only root outside of containers may change the agent's state: the caller is in another PID namespace than the agent",
			Fix: "run the command on the host"}
	}
	return nil
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the caller may have gone away
}

func writeError(w http.ResponseWriter, err error) {
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Code: CodeOf(err), Message: err.Error()}
	} else if msg := err.Error(); msg != e.Message {
		// Context that was wrapped around the typed error is kept.
		e = &Error{Code: e.Code, Message: msg, Fix: e.Fix}
	}
	writeJSON(w, e.Code.status(), failure{Schema: Schema, Error: e})
}

// status is the HTTP status of an error code.
func (c Code) status() int {
	switch c {
	case CodeInvalid:
		return http.StatusBadRequest
	case CodeNotFound:
		return http.StatusNotFound
	case CodeRefused:
		return http.StatusConflict
	case CodePermission:
		return http.StatusForbidden
	case CodeTimeout:
		return http.StatusGatewayTimeout
	case CodeNotRunning:
		return http.StatusServiceUnavailable
	default:
		return http.StatusInternalServerError
	}
}

// readBody decodes a bounded, exact JSON body. An empty body is an error
// unless optional is set.
func readBody[T any](r *http.Request) (T, error) {
	var v T
	raw, err := io.ReadAll(r.Body)
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return v, &Error{Code: CodeInvalid, Message: fmt.Sprintf("the request is larger than %d bytes", maxBody)}
	}
	if err != nil {
		return v, fmt.Errorf("read request: %w", err)
	}
	if err := decodeExact(raw, &v); err != nil {
		return v, err
	}
	return v, nil
}
