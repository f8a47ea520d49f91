package metrics

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
)

// listen serves metrics that say how often they were asked for.
func listen(t *testing.T, fail *atomic.Bool) (addr string, scrapes *atomic.Int64) {
	t.Helper()
	scrapes = &atomic.Int64{}
	l := NewListener(ListenerOptions{
		Addr: netip.MustParseAddrPort("127.0.0.1:0"),
		Write: func(_ context.Context, w io.Writer) error {
			if fail.Load() {
				return errors.New("private details")
			}
			_, err := fmt.Fprintf(w, "scrapes %d\n", scrapes.Add(1))
			return err
		},
	})
	if err := l.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return l.Addr().String(), scrapes
}

func ask(t *testing.T, method, addr, path, host string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+addr+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	c := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode == http.StatusOK && res.Header.Get("Content-Type") != ContentType {
		t.Errorf("content type %q", res.Header.Get("Content-Type"))
	}
	return res.StatusCode, string(body)
}

func TestListener(t *testing.T) {
	var fail atomic.Bool
	addr, scrapes := listen(t, &fail)
	for _, tc := range []struct {
		method, path, host string
		want               int
	}{
		{"GET", "/metrics", "rebound.example", 403},
		{"GET", "/metrics", "rebound.example:9100", 403},
		{"GET", "/metrics", "127.0.0.1.rebound.example", 403},
		{"GET", "/metrics", "192.0.2.1:9100", 403},
		{"GET", "/metrics", "", 403},
		{"GET", "/", addr, 404},
		{"GET", "/v1/status", addr, 404},
		{"POST", "/metrics", addr, 405},
		{"DELETE", "/metrics", addr, 405},
	} {
		host := tc.host
		if host == "" {
			host = "[::]" // an empty one would be filled in by the client
		}
		if got, body := ask(t, tc.method, addr, tc.path, host); got != tc.want {
			t.Errorf("%s %s at %q: %d %s, want %d", tc.method, tc.path, host, got, body, tc.want)
		}
	}
	if n := scrapes.Load(); n != 0 {
		t.Errorf("%d refused requests reached the agent", n)
	}
	fail.Store(true)
	if got, body := ask(t, "GET", addr, "/metrics", addr); got != 503 || strings.Contains(body, "private") {
		t.Errorf("agent that fails: %d %s", got, body)
	}
	fail.Store(false)
	// Several callers within a second cost the agent one scrape; two if the
	// second ends between them.
	for _, host := range []string{addr, "localhost", "localhost:9100", "127.0.0.2", "[::1]:9100", "[::1]"} {
		if got, body := ask(t, "GET", addr, "/metrics", host); got != 200 || !strings.HasPrefix(body, "scrapes ") {
			t.Errorf("at %q: %d %s", host, got, body)
		}
	}
	if n := scrapes.Load(); n < 1 || n > 2 {
		t.Errorf("%d scrapes", n)
	}
}

func TestListenerRefusesOtherAddresses(t *testing.T) {
	for _, a := range []string{"0.0.0.0:0", "[::]:0", "192.0.2.1:0", "[2001:db8::1]:0"} {
		l := NewListener(ListenerOptions{Addr: netip.MustParseAddrPort(a)})
		if err := l.Listen(); err == nil || !strings.Contains(err.Error(), "not a loopback address") {
			t.Errorf("%s: %v", a, err)
		}
	}
}
