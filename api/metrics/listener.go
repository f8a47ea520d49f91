package metrics

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/netutil"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
)

// Limits of the listener. Any user of the machine can connect, so what one of
// them can cost the agent is bounded: one scrape a second, a few connections.
const (
	maxConns      = 16
	maxAge        = time.Second // of an answer that is given again
	scrapeTimeout = 10 * time.Second
)

// ListenerOptions configures a Listener.
type ListenerOptions struct {
	Addr  netip.AddrPort // a loopback address
	Write func(ctx context.Context, w io.Writer) error
	Log   *slog.Logger
}

// Listener serves GET /metrics over TCP. Use it as NewListener, Listen, Run.
type Listener struct {
	opts ListenerOptions
	ln   net.Listener

	mu   sync.Mutex // guards the fields below, and lets one scrape run at a time
	text []byte
	at   time.Time
}

// NewListener returns a listener that does nothing yet.
func NewListener(o ListenerOptions) *Listener {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Listener{opts: o}
}

// Listen binds the address. It refuses what is not a loopback address.
func (l *Listener) Listen() error {
	// The configuration has checked this; but here is where it matters.
	// There is no authentication: an address that others can reach would show
	// them who talks to whom, and how much.
	if !l.opts.Addr.Addr().Unmap().IsLoopback() {
		return fmt.Errorf("listen for metrics on %s: not a loopback address", l.opts.Addr)
	}
	ln, err := net.Listen("tcp", l.opts.Addr.String())
	if err != nil {
		return fmt.Errorf("listen for metrics: %w", err)
	}
	l.ln = netutil.LimitListener(ln, maxConns)
	return nil
}

// Addr is where the listener listens, after Listen.
func (l *Listener) Addr() net.Addr { return l.ln.Addr() }

// Run serves until ctx ends. The error is nil then.
func (l *Listener) Run(ctx context.Context) error {
	srv := &http.Server{
		Handler:           http.HandlerFunc(l.serve),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       5 * time.Second,
		WriteTimeout:      scrapeTimeout + 5*time.Second,
		IdleTimeout:       30 * time.Second,
		MaxHeaderBytes:    8 << 10,
		ErrorLog:          slog.NewLogLogger(l.opts.Log.Handler(), slog.LevelWarn),
	}
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	err := srv.Serve(l.ln)
	if ctx.Err() != nil && errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return fmt.Errorf("serve metrics: %w", err)
}

func (l *Listener) serve(w http.ResponseWriter, r *http.Request) {
	switch {
	case !localHost(r.Host):
		// A web page that a user of this machine opens can make its own name
		// point here (DNS rebinding). The browser then sends that name.
		http.Error(w, "ask by a loopback address or localhost", http.StatusForbidden)
		return
	case r.URL.Path != "/metrics":
		http.Error(w, "there is /metrics only", http.StatusNotFound)
		return
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "metrics can be read only", http.StatusMethodNotAllowed)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), scrapeTimeout)
	defer cancel()
	text, err := l.scrape(ctx)
	if err != nil {
		l.opts.Log.Debug("scrape failed", logkey.Error, err)
		http.Error(w, "the agent does not answer", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", ContentType)
	w.Header().Set("Cache-Control", "no-store")
	_, _ = w.Write(text) // the caller may have gone away
}

// scrape asks the agent, unless it was asked just before.
func (l *Listener) scrape(ctx context.Context) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.text != nil && time.Since(l.at) < maxAge {
		return l.text, nil
	}
	var b bytes.Buffer
	if err := l.opts.Write(ctx, &b); err != nil {
		return nil, err
	}
	l.text, l.at = b.Bytes(), time.Now()
	return l.text, nil
}

// localHost reports whether a Host header names this machine by itself.
func localHost(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	if name == "localhost" {
		return true
	}
	if len(name) > 2 && name[0] == '[' && name[len(name)-1] == ']' {
		name = name[1 : len(name)-1]
	}
	a, err := netip.ParseAddr(name)
	return err == nil && a.Unmap().IsLoopback()
}
