package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestRoundTrip(t *testing.T) {
	f := newFake()
	_, c, _ := start(t, f)
	ctx := t.Context()
	st, err := c.Status(ctx)
	if err != nil || st.Schema != Schema || st.State != StateOK || len(st.Networks) != 1 || st.Peers == nil || st.Problems == nil || st.Warnings == nil {
		t.Fatalf("status = %+v, %v", st, err)
	}
	if nets, err := c.Networks(ctx); err != nil || nets.Networks == nil {
		t.Errorf("networks = %+v, %v", nets, err)
	}
	ep, err := c.Attach(ctx, AttachRequest{Network: "blue", PID: 1, Addresses: []netip.Addr{netip.MustParseAddr("10.77.0.5")}})
	if err != nil || ep.ID != "000000000001" || ep.MTU != 1370 {
		t.Fatalf("attach = %+v, %v", ep, err)
	}
	eps, err := c.Endpoints(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]Endpoint{ep.Endpoint}, eps.Endpoints, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Error(d)
	}
	if err := c.Detach(ctx, ep.ID); err != nil {
		t.Error(err)
	}
	tok, err := c.CreateToken(ctx, TokenRequest{TTL: Duration(time.Hour)})
	if err != nil || tok.Text != "SO1SECRET" || tok.Schema != Schema || tok.Expires.Unix() != 3601 {
		t.Errorf("token = %+v, %v", tok, err)
	}
	if list, err := c.Tokens(ctx); err != nil || len(list.Tokens) != 1 {
		t.Errorf("tokens = %+v, %v", list, err)
	}
	if d, err := c.DecideJoin(ctx, "t1", JoinDecision{Node: "web-2", Approve: true}); err != nil || d.Node.Name != "web-2" || !d.Approved {
		t.Errorf("decision = %+v, %v", d, err)
	}
	if err := c.RevokeToken(ctx, "t1"); err != nil {
		t.Error(err)
	}
	keysRoundTrip(t, c)
	floorRoundTrip(t, c)
	leaveRoundTrip(t, c)
	res, err := c.Down(ctx, DownRequest{})
	if err != nil || len(res.Removed) != 1 || f.downs != 1 {
		t.Errorf("down = %+v, %v", res, err)
	}
}

func floorRoundTrip(t *testing.T, c *Client) {
	t.Helper()
	if p, err := c.Protocol(t.Context()); err != nil || p.Schema != Schema || p.Floor != 0 {
		t.Errorf("protocol = %+v, %v", p, err)
	}
	if p, err := c.SetFloor(t.Context(), FloorRequest{Raise: 2}); err != nil || p.Floor != 2 {
		t.Errorf("floor = %+v, %v", p, err)
	}
	for name, req := range map[string]FloorRequest{"nothing": {}, "both": {Raise: 2, Item: []byte("x")}, "refused": {Item: []byte("forged")}} {
		if _, err := c.SetFloor(t.Context(), req); CodeOf(err) != CodeInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func keysRoundTrip(t *testing.T, c *Client) {
	t.Helper()
	dry, err := c.Rotate(t.Context(), RotateRequest{DryRun: true})
	if err != nil || dry.Schema != Schema || !dry.DryRun || dry.To != 2 || dry.Effects == nil || !dry.Created.IsZero() {
		t.Errorf("dry run = %+v, %v", dry, err)
	}
	rot, err := c.Rotate(t.Context(), RotateRequest{Driver: "auto"})
	if err != nil || rot.From != 1 || rot.To != 2 || rot.DryRun || rot.Created.IsZero() {
		t.Errorf("rotation = %+v, %v", rot, err)
	}
	k, err := c.Keys(t.Context())
	if err != nil || k.Schema != Schema || k.Target.Epoch != 2 || time.Duration(k.RotateEvery) != 12*time.Hour || k.Devices == nil || k.Peers == nil || k.Nodes[0].Epochs == nil {
		t.Errorf("keys = %+v, %v", k, err)
	}
	if h, err := c.KeyHistory(t.Context()); err != nil || h.Schema != Schema || len(h.Events) != 1 || h.Events[0].Kind != EventSwitched || h.Events[0].Node.Name != "b" {
		t.Errorf("history = %+v, %v", h, err)
	}
}

// An agent without an implementation says so, and does not fall over.
func TestWithoutKeys(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	f := newFake()
	b := f.backend()
	b.Keys, b.Events, b.Protocols, b.Leaver = nil, nil, nil, nil
	serveBackend(t, path, b)
	c := NewClient(path)
	defer c.Close()
	_, err1 := c.Keys(t.Context())
	_, err2 := c.Rotate(t.Context(), RotateRequest{})
	_, err3 := c.KeyHistory(t.Context())
	for _, err := range []error{err1, err2, err3} {
		if CodeOf(err) != CodeFailed || !strings.Contains(err.Error(), "has no key rotation") {
			t.Errorf("without keys: %v", err)
		}
	}
	_, err1 = c.Protocol(t.Context())
	_, err2 = c.SetFloor(t.Context(), FloorRequest{Raise: 2})
	for _, err := range []error{err1, err2} {
		if CodeOf(err) != CodeFailed || !strings.Contains(err.Error(), "has no protocol floor") {
			t.Errorf("without floor: %v", err)
		}
	}
	if _, err := c.Events(t.Context(), EventQuery{}); CodeOf(err) != CodeFailed || !strings.Contains(err.Error(), "has no event log") {
		t.Errorf("without events: %v", err)
	}
	_, err4 := c.Leave(t.Context(), LeaveRequest{})
	_, err5 := c.Departure(t.Context())
	_, err6 := c.FinishLeave(t.Context())
	for _, err := range []error{err4, err5, err6} {
		if CodeOf(err) != CodeFailed || !strings.Contains(err.Error(), "no way to leave") {
			t.Errorf("without a way to leave: %v", err)
		}
	}
}

func TestMetrics(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	var broken error
	s := NewServer(ServerOptions{Path: path, Backend: newFake().backend(), Metrics: func(_ context.Context, w io.Writer) error {
		if broken == nil {
			_, _ = io.WriteString(w, "up 1\n")
		}
		return broken
	}})
	run(t, s)
	c := NewClient(path)
	defer c.Close()
	if got, err := c.Metrics(t.Context()); err != nil || string(got) != "up 1\n" {
		t.Errorf("metrics = %q, %v", got, err)
	}
	broken = NewError(CodeTimeout, "busy", "")
	if got, err := c.Metrics(t.Context()); CodeOf(err) != CodeTimeout || got != nil {
		t.Errorf("broken metrics = %q, %v", got, err)
	}
	_, c, _ = start(t, newFake())
	if _, err := c.Metrics(t.Context()); CodeOf(err) != CodeFailed || !strings.Contains(err.Error(), "has no metrics") {
		t.Errorf("no metrics: %v", err)
	}
}

func TestErrors(t *testing.T) {
	_, c, _ := start(t, newFake())
	ctx := t.Context()
	for name, tc := range map[string]struct {
		err  func() error
		code Code
		msg  string
	}{
		"wrapped not found": {func() error { _, err := c.Attach(ctx, AttachRequest{Network: "red", PID: 1}); return err }, CodeNotFound, `attach: no network "red"`},
		"detach":            {func() error { return c.Detach(ctx, "zz") }, CodeNotFound, "no endpoint zz"},
		"odd ID":            {func() error { return c.Detach(ctx, "../status") }, CodeNotFound, ""},
		"revoke":            {func() error { return c.RevokeToken(ctx, "zz") }, CodeNotFound, "no token zz"},
		"no namespace":      {func() error { _, err := c.Attach(ctx, AttachRequest{Network: "blue"}); return err }, CodeInvalid, "exactly one"},
		"two namespaces":    {func() error { _, err := c.Attach(ctx, AttachRequest{Network: "blue", PID: 1, Netns: "/x"}); return err }, CodeInvalid, "exactly one"},
		"relative":          {func() error { _, err := c.Attach(ctx, AttachRequest{Network: "blue", Netns: "x"}); return err }, CodeInvalid, "not absolute"},
		"long name": {func() error {
			_, err := c.Attach(ctx, AttachRequest{Network: "blue", PID: 1, Ifname: strings.Repeat("x", 16)})
			return err
		}, CodeInvalid, "15 fit"},
		"slash in name": {func() error {
			_, err := c.Attach(ctx, AttachRequest{Network: "blue", PID: 1, Ifname: "a/b"})
			return err
		}, CodeInvalid, "does not accept"},
		"address twice": {func() error {
			a := netip.MustParseAddr("10.0.0.1")
			_, err := c.Attach(ctx, AttachRequest{Network: "blue", PID: 1, Addresses: []netip.Addr{a, a}})
			return err
		}, CodeInvalid, "stands twice"},
		"refused rotation": {func() error { _, err := c.Rotate(ctx, RotateRequest{Driver: "ipsec"}); return err }, CodeRefused, "no node can do"},
		"driver":           {func() error { _, err := c.Rotate(ctx, RotateRequest{Driver: "wiregard"}); return err }, CodeInvalid, `no driver "wiregard"`},
		"lifetime":         {func() error { _, err := c.CreateToken(ctx, TokenRequest{TTL: -1}); return err }, CodeInvalid, "negative"},
	} {
		err := tc.err()
		var e *Error
		if !errors.As(err, &e) || e.Code != tc.code || !strings.Contains(e.Message, tc.msg) {
			t.Errorf("%s: %v (code %s), want %s with %q", name, err, CodeOf(err), tc.code, tc.msg)
		}
	}
}

// raw makes a call that the client would not make.
func raw(t *testing.T, path, method, target, body string) (int, string) {
	t.Helper()
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}}
	req, err := http.NewRequestWithContext(t.Context(), method, "http://agent"+target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	res, err := hc.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = res.Body.Close() }()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if ct := res.Header.Get("Content-Type"); ct != "application/json" {
		t.Errorf("%s %s: content type %q", method, target, ct)
	}
	return res.StatusCode, string(b)
}

func TestStrictRequests(t *testing.T) {
	f := newFake()
	path, _, _ := start(t, f)
	for _, tc := range []struct {
		method, target, body string
		status               int
		want                 string
	}{
		{"GET", "/v1/statuss", "", 404, "no call"},
		{"GET", "/", "", 404, "no call"},
		{"GET", "//v1/status", "", 404, "no call"},
		{"GET", "/v1/../v1/status", "", 404, "no call"},
		{"GET", "/v1/status/", "", 404, "no call"},
		{"POST", "/v1/status", "{}", 400, "no POST"},
		{"DELETE", "/v1/endpoints", "", 400, "no DELETE"},
		{"GET", "/v1/down", "", 400, "no GET"},
		{"GET", "/v1/status?x=1", "", 400, "no query parameters"},
		{"POST", "/v1/endpoints", "", 400, "want a JSON object"},
		{"POST", "/v1/endpoints", "[]", 400, "want a JSON object"},
		{"POST", "/v1/endpoints", `{"netork":"blue"}`, 400, `unknown field \"netork\" (did you mean \"network\"?)`},
		{"POST", "/v1/endpoints", `{"Network":"blue","pid":1}`, 400, `did you mean \"network\"?`},
		{"POST", "/v1/endpoints", `{"network":"blue","network":"lab","pid":1}`, 400, `\"network\" stands twice`},
		{"POST", "/v1/endpoints", `{"network":"blue","pid":"1"}`, 400, "cannot unmarshal string"},
		{"POST", "/v1/endpoints", `{"network":"blue","pid":1} {}`, 400, "data behind"},
		{"POST", "/v1/endpoints", `{"network":"blue","pid":1`, 400, "invalid request"},
		{"POST", "/v1/endpoints", `{"network":"` + strings.Repeat("x", maxBody) + `"}`, 400, "larger than 65536"},
		{"POST", "/v1/down", `{"force":true}`, 400, "unknown field"},
		{"POST", "/v1/tokens", `{"ttl":"soon"}`, 400, "15m"},
		{"DELETE", "/v1/tokens/x", "{}", 400, "no body"},
		{"GET", "/v1/events?sinc=1", "", 400, `no parameter \"sinc\" (did you mean \"since\"?)`},
		{"GET", "/v1/events?x=1", "", 400, "known: since, after, kind, limit"},
		{"GET", "/v1/events?since=1h", "", 400, "want a time such as"},
		{"GET", "/v1/events?after=-1", "", 400, "want the number of an event"},
		{"GET", "/v1/events?after=1&after=2", "", 400, "want one value"},
		{"GET", "/v1/events?limit=0", "", 400, "want 1 to 10000"},
		{"GET", "/v1/events?limit=10001", "", 400, "want 1 to 10000"},
		{"GET", "/v1/events?kind=switchd", "", 400, `no kind of event \"switchd\"`},
		{"GET", "/v1/events?kind=", "", 400, "no kind of event"},
		{"GET", "/v1/events?%zz", "", 400, "cannot be read"},
		{"POST", "/v1/events", "{}", 400, "no POST"},
		{"GET", "/v1/keys/rotate", "", 400, "no GET"},
		{"POST", "/v1/keys", "{}", 400, "no POST"},
		{"POST", "/v1/keys/rotate", "", 400, "want a JSON object"},
		{"POST", "/v1/keys/rotate", `{"drivr":"auto"}`, 400, `did you mean \"driver\"?`},
		{"POST", "/v1/keys/rotate", `{"driver":"wiregard"}`, 400, `did you mean \"wireguard\"?`},
		{"POST", "/v1/keys/rotate", `{"driver":"none"}`, 400, "one of auto, wireguard, userspace, ipsec, ipsec-userspace"},
	} {
		status, body := raw(t, path, tc.method, tc.target, tc.body)
		if status != tc.status || !strings.Contains(body, tc.want) || !strings.Contains(body, `"schema":1`) {
			t.Errorf("%s %s %.60s: %d %s, want %d %s", tc.method, tc.target, tc.body, status, body, tc.status, tc.want)
		}
	}
	if n := f.changes(); n != 0 {
		t.Errorf("%d refused requests reached the agent", n)
	}
}

func TestConcurrentUse(t *testing.T) {
	f := newFake()
	_, c, _ := start(t, f)
	var wg sync.WaitGroup
	errs := make(chan error, 200)
	for i := range 20 {
		wg.Go(func() {
			for range 5 {
				if _, err := c.Attach(t.Context(), AttachRequest{Network: "blue", PID: i + 1}); err != nil {
					errs <- err
				}
				if _, err := c.Endpoints(t.Context()); err != nil {
					errs <- err
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	if len(f.endpoints) != 100 {
		t.Errorf("%d endpoints, want 100", len(f.endpoints))
	}
}

// A caller that holds many connections takes slots, but not for ever, and the
// server goes on for others when they end.
func TestConnectionLimit(t *testing.T) {
	path, c, _ := start(t, newFake())
	var held []net.Conn
	for range maxConns {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
	}
	eventually(t, "a connection beyond the limit is refused", func() bool {
		_, err := c.Status(t.Context())
		return err != nil
	})
	for _, conn := range held {
		_ = conn.Close()
	}
	eventually(t, "the server answers again", func() bool {
		_, err := c.Status(t.Context())
		return err == nil
	})
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func TestShutdownFinishesCalls(t *testing.T) {
	f := newFake()
	f.block, f.inside = make(chan struct{}), make(chan struct{}, 1)
	path, c, stop := start(t, f)
	got := make(chan error, 1)
	go func() { _, err := c.Members(context.Background()); got <- err }()
	<-f.inside
	other := NewClient(path)
	defer other.Close()
	if _, err := other.Status(t.Context()); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- stop() }()
	eventually(t, "the socket is gone", func() bool { _, err := os.Stat(path); return errors.Is(err, os.ErrNotExist) })
	close(f.block)
	if err := <-got; err != nil {
		t.Errorf("call under way: %v", err)
	}
	if err := <-ended; err != nil {
		t.Errorf("stop: %v", err)
	}
	if _, err := other.Status(t.Context()); CodeOf(err) != CodeNotRunning {
		t.Errorf("after the end: %v", err)
	}
}

func TestSocketFile(t *testing.T) {
	path, c, stop := start(t, newFake())
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o660 {
		t.Fatalf("mode %v, %v", st.Mode(), err)
	}
	// A second server does not take a socket that is answered.
	err = NewServer(ServerOptions{Path: path, Backend: newFake().backend()}).Listen()
	if CodeOf(err) != CodeRefused {
		t.Errorf("second server: %v", err)
	}
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("first server after the attempt: %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket after the end: %v", err)
	}

	// A left-over socket is replaced.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	if _, err := c.Status(t.Context()); CodeOf(err) != CodeNotRunning {
		t.Errorf("left-over socket: %v", err)
	}
	serve(t, path, newFake())
	if _, err := c.Status(t.Context()); err != nil {
		t.Errorf("after replacement: %v", err)
	}

	// Anything that is no socket stays.
	file := filepath.Join(filepath.Dir(path), "file")
	if err := os.WriteFile(file, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := NewServer(ServerOptions{Path: file}).Listen(); err == nil {
		t.Error("a file was replaced by a socket")
	}
	if err := NewServer(ServerOptions{Path: path + "2", Group: "no-such-group-here"}).Listen(); err == nil {
		t.Error("an unknown group was accepted")
	}
}

func TestClientErrors(t *testing.T) {
	c := NewClient(filepath.Join(t.TempDir(), "none.sock"))
	_, err := c.Status(t.Context())
	var e *Error
	if !errors.As(err, &e) || e.Code != CodeNotRunning || e.Code.ExitCode() != 3 || e.Fix == "" {
		t.Errorf("no agent: %+v", err)
	}
	f := newFake()
	f.block = make(chan struct{})
	defer close(f.block)
	_, c, _ = start(t, f)
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.Members(ctx); CodeOf(err) != CodeTimeout {
		t.Errorf("deadline: %v", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	cancel()
	if _, err := c.Members(ctx); err == nil || err.Error() != "interrupted" {
		t.Errorf("cancelled: %v", err)
	}
}

// Another program on the socket must not be taken for an agent.
func TestForeignServer(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var answer string
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprint(w, answer) })}
	done := make(chan struct{})
	go func() { _ = srv.Serve(l); close(done) }()
	defer func() { _ = srv.Close(); <-done }()
	c := NewClient(path)
	defer c.Close()
	for _, answer = range []string{"hello", `{"schema":2}`, `{}`, `{"schema":1,"state":7}`} {
		if _, err := c.Status(t.Context()); err == nil || CodeOf(err) != CodeFailed {
			t.Errorf("answer %q: %v", answer, err)
		}
	}
}

func TestExitCodes(t *testing.T) {
	want := map[Code]int{CodeFailed: 1, CodeInvalid: 2, CodeNotRunning: 3, CodeDegraded: 4, CodeNotFound: 5, CodeRefused: 6, CodePermission: 7, CodeTimeout: 8, "other": 1}
	for c, n := range want {
		if c.ExitCode() != n {
			t.Errorf("exit code of %s = %d, want %d", c, c.ExitCode(), n)
		}
	}
	if CodeOf(fmt.Errorf("x: %w", context.DeadlineExceeded)) != CodeTimeout || CodeOf(errors.New("x")) != CodeFailed {
		t.Error("CodeOf of plain errors")
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{`{"network":"blue","pid":1}`, `{}`, `{"network":"blue","Network":"x"}`, `{"addresses":["10.0.0.1"]}`, `[`, `{"a":{"b":[]}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var req AttachRequest
		if err := decodeExact(raw, &req); err != nil {
			if CodeOf(err) != CodeInvalid {
				t.Fatalf("code %s: %v", CodeOf(err), err)
			}
			return
		}
		_ = req.check()
	})
}
