package api

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/secure-overlay/secure-overlay/internal/events"
	"github.com/secure-overlay/secure-overlay/internal/ids"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		os.Exit(child())
	}
	if spec := os.Getenv(containerEnv); spec != "" {
		os.Exit(runContainer(spec))
	}
	goleak.VerifyTestMain(m)
}

// fake is an agent without a kernel: endpoints and tokens in maps.
type fake struct {
	mu        sync.Mutex
	endpoints map[string]Endpoint
	tokens    map[string]Token
	calls     map[string]int
	block     chan struct{} // Members waits for it
	inside    chan struct{} // and says here that it does; capacity 1
	downs     int
	left      time.Time
	epoch     ids.Epoch
	floor     Protocol
	log       *events.Log
}

func newFake() *fake {
	return &fake{endpoints: map[string]Endpoint{}, tokens: map[string]Token{}, calls: map[string]int{}, epoch: 1}
}

func (f *fake) count(name string) { f.calls[name]++ }

func (f *fake) changes() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls["attach"] + f.calls["detach"] + f.calls["create"] + f.calls["revoke"] + f.calls["rotate"] + f.calls["floor"] + f.calls["leave"] + f.calls["finish"] + f.downs
}

func (f *fake) Status(context.Context) (Status, error) {
	return Status{State: StateOK, Ready: true, Version: "test", Networks: []Network{{Name: "blue", VNI: 4097}}}, nil
}

func (f *fake) Members(ctx context.Context) ([]Member, error) {
	if f.block != nil {
		select {
		case f.inside <- struct{}{}:
		default: // nobody asks
		}
		select {
		case <-f.block:
		case <-ctx.Done():
			return nil, fmt.Errorf("list members: %w", ctx.Err())
		}
	}
	return []Member{{NodeRef: NodeRef{Name: "a"}, Self: true, State: "alive"}}, nil
}

func (f *fake) Networks(context.Context) ([]Network, error) { return nil, nil }

func (f *fake) Endpoints(context.Context) ([]Endpoint, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Endpoint
	for _, e := range f.endpoints {
		out = append(out, e)
	}
	return out, nil
}

func (f *fake) Attach(_ context.Context, req AttachRequest) (Endpoint, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count("attach")
	if req.Network != "blue" {
		return Endpoint{}, fmt.Errorf("attach: %w", NewError(CodeNotFound, fmt.Sprintf("no network %q", req.Network), "secure-overlay network ls"))
	}
	id := fmt.Sprintf("%012x", len(f.endpoints)+1)
	e := Endpoint{ID: id, Network: req.Network, Local: true, MAC: ids.MAC{2, 0, 0, 0, 0, byte(len(f.endpoints))},
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.77.0.5/16")}, Netns: req.Netns, Ifname: "eth0", MTU: 1370, State: StateOK}
	f.endpoints[id] = e
	return e, nil
}

func (f *fake) Detach(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count("detach")
	if _, ok := f.endpoints[id]; !ok {
		return NewError(CodeNotFound, "no endpoint "+id, "secure-overlay endpoint ls")
	}
	delete(f.endpoints, id)
	return nil
}

func (f *fake) CreateToken(_ context.Context, req TokenRequest) (NewToken, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count("create")
	t := Token{ID: "t1", State: TokenOpen, Expires: time.Unix(1, 0).Add(time.Duration(req.TTL)).UTC()}
	f.tokens[t.ID] = t
	return NewToken{Token: t, Text: "SO1SECRET"}, nil
}

func (f *fake) DecideJoin(_ context.Context, id string, d JoinDecision) (NodeRef, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count("decide")
	if _, ok := f.tokens[id]; !ok {
		return NodeRef{}, NewError(CodeNotFound, "no token "+id, "secure-overlay token ls")
	}
	return NodeRef{Name: d.Node}, nil
}

func (f *fake) Tokens(context.Context) ([]Token, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []Token
	for _, t := range f.tokens {
		out = append(out, t)
	}
	return out, nil
}

func (f *fake) RevokeToken(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count("revoke")
	if _, ok := f.tokens[id]; !ok {
		return NewError(CodeNotFound, "no token "+id, "secure-overlay token ls")
	}
	delete(f.tokens, id)
	return nil
}

func (f *fake) Reload(context.Context) (Reload, error) { return Reload{}, nil }

func (f *fake) Down(context.Context, DownRequest) (DownResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.downs++
	return DownResult{Removed: []string{"namespace net-blue"}}, nil
}

func (f *fake) Leave(_ context.Context, req LeaveRequest) (Departure, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count("leave")
	if !req.Force {
		return Departure{}, NewError(CodeRefused, "the only issuer", "secure-overlay issuer request")
	}
	f.left = time.Unix(1, 0).UTC()
	return Departure{Node: NodeRef{Name: "a"}, Left: f.left, Told: Count{OK: 1, Total: 2}}, nil
}

func (f *fake) Departure(context.Context) (Departure, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.left.IsZero() {
		return Departure{}, NewError(CodeRefused, "a member", "secure-overlay leave")
	}
	return Departure{Node: NodeRef{Name: "a"}, Left: f.left, Told: Count{OK: 2, Total: 2}}, nil
}

func (f *fake) FinishLeave(context.Context) (LeaveResult, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count("finish")
	return LeaveResult{Departure: Departure{Left: f.left, Told: Count{OK: 2, Total: 2}}, DataDir: "/data"}, nil
}

func (f *fake) Keys(context.Context) (KeyStatus, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return KeyStatus{
		Target: KeyTarget{Epoch: f.epoch, Driver: "auto"}, RotateEvery: Duration(12 * time.Hour),
		Nodes: []KeyNode{{NodeRef: NodeRef{Name: "a"}, Self: true, State: "alive"}},
	}, nil
}

func (f *fake) Rotate(_ context.Context, req RotateRequest) (Rotation, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count("rotate")
	if req.Driver == "ipsec" {
		return Rotation{}, NewError(CodeRefused, "no node can do ipsec", "secure-overlay keys rotate")
	}
	r := Rotation{From: f.epoch, To: f.epoch + 1, Driver: "auto", DryRun: req.DryRun}
	if !req.DryRun {
		f.epoch++
		r.Created = time.Unix(1, 0).UTC()
	}
	return r, nil
}

func (f *fake) Protocol(context.Context) (Protocol, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.floor, nil
}

func (f *fake) SetFloor(_ context.Context, req FloorRequest) (Protocol, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.count("floor")
	if string(req.Item) == "forged" {
		return Protocol{}, NewError(CodeInvalid, "not signed with the root key", "")
	}
	f.floor.Floor = max(f.floor.Floor, req.Raise)
	return f.floor, nil
}

func (f *fake) KeyHistory(context.Context) ([]KeyEvent, error) {
	return []KeyEvent{{Seq: 1, Time: time.Unix(1, 0).UTC(), Kind: EventSwitched, Epoch: 2, Node: &NodeRef{Name: "b"}, Seconds: 0.5}}, nil
}

func (f *fake) backend() Backend {
	return Backend{Observer: f, Attacher: f, Tokens: f, Lifecycle: f, Keys: f, Protocols: f, Leaver: f, Events: LogEvents(f.log)}
}

// start serves f on a socket in a folder that other users can enter.
func start(t *testing.T, f *fake) (path string, c *Client, stop func() error) {
	t.Helper()
	path = filepath.Join(publicDir(t), "agent.sock")
	stop = serve(t, path, f)
	c = NewClient(path)
	t.Cleanup(c.Close)
	return path, c, stop
}

// publicDir is a folder that every user may look into.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "so-api-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// serve runs a server at path and returns what ends it.
func serve(t *testing.T, path string, f *fake) func() error {
	t.Helper()
	return serveBackend(t, path, f.backend())
}

func serveBackend(t *testing.T, path string, b Backend) func() error {
	t.Helper()
	return run(t, NewServer(ServerOptions{Path: path, Backend: b}))
}

func run(t *testing.T, s *Server) func() error {
	t.Helper()
	if err := s.Listen(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var once sync.Once
	var err error
	stop := func() error {
		once.Do(func() { cancel(); err = <-done })
		return err
	}
	t.Cleanup(func() { _ = stop() })
	return stop
}
