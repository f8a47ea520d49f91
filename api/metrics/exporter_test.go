package metrics

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"go.uber.org/goleak"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/internal/ids"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var update = flag.Bool("update", false, "write the golden file")

// fake answers what it was told to.
type fake struct {
	status api.Status
	keys   api.KeyStatus
	err    error
}

func (f fake) Status(context.Context) (api.Status, error)        { return f.status, f.err }
func (f fake) Members(context.Context) ([]api.Member, error)     { return nil, nil }
func (f fake) Networks(context.Context) ([]api.Network, error)   { return nil, nil }
func (f fake) Endpoints(context.Context) ([]api.Endpoint, error) { return nil, nil }
func (f fake) Keys(context.Context) (api.KeyStatus, error)       { return f.keys, f.err }
func (f fake) KeyHistory(context.Context) ([]api.KeyEvent, error) {
	return nil, nil
}

func (f fake) Rotate(context.Context, api.RotateRequest) (api.Rotation, error) {
	return api.Rotation{}, nil
}

func example(now time.Time) fake {
	b, c := api.NodeRef{ID: ids.NodeIDOf([32]byte{2}), Name: "web"}, api.NodeRef{ID: ids.NodeIDOf([32]byte{3}), Name: "web"}
	odd := api.NodeRef{ID: ids.NodeIDOf([32]byte{4}), Name: "a\xff\"\n\\"}
	return fake{
		status: api.Status{
			Cluster: ids.ClusterID{0xab}, Node: api.NodeRef{ID: ids.NodeIDOf([32]byte{1}), Name: "web-1"}, Version: "v1.2.3", State: api.StateDegraded,
			Members: api.Count{OK: 2, Total: 3}, Driver: api.Driver{Name: "wireguard"}, Epoch: 3,
			Expires: time.Unix(3000, 0), Clock: api.Clock{Behind: api.Duration(time.Minute), Jumped: api.Duration(-90 * time.Second), Ahead: api.Duration(-time.Minute), Others: 2},
			Keys: api.KeySummary{Target: 3, Started: now.Add(-90 * time.Second), NextRotation: time.Unix(2000, 500_000_000)},
			Networks: []api.Network{
				{Name: "blue", Encrypted: true, State: api.StateOK, EndpointsHere: 2, Peers: api.Count{OK: 1, Total: 2}},
				{Name: "lab", State: api.StateDegraded},
			},
			Peers: []api.Peer{
				{NodeRef: b, Tunnel: api.TunnelUp, RxBytes: 1 << 40, TxBytes: 5, LastHandshake: now.Add(-38 * time.Second), Epoch: 3, PQ: true, Expires: time.Unix(2500, 0)},
				{NodeRef: c, Tunnel: api.TunnelWaiting, Epoch: 2},
				{NodeRef: odd, Tunnel: api.TunnelNone},
			},
			Problems:  []api.Problem{{Code: "peer-quiet"}, {Code: api.CodeStale}},
			Warnings:  []api.Problem{{Code: api.CodeConflict, Subject: "a"}, {Code: api.CodeConflict, Subject: "b"}},
			Heartbeat: now.Add(-42 * time.Second), Protocol: api.Protocol{Min: 1, Max: 2, Floor: 2},
		},
		keys: api.KeyStatus{
			Devices: []api.KeyDevice{{Epoch: 2}, {Epoch: 3, Driver: "ipsec-userspace", Dropped: map[string]uint64{"replay": 2, "forged": 1}}},
			Counts:  api.KeyCounts{Rotations: 3, Switches: 5, SwitchSeconds: 1.25, Refusals: 1},
			Peers: []api.KeyPeer{
				{NodeRef: b, Step: api.KeyStepDone, Since: now.Add(-80 * time.Second), FullMTU: true},
				{NodeRef: odd, Step: api.KeyStepRefused},
			},
		},
	}
}

func TestText(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	f := example(now)
	var b bytes.Buffer
	if err := (snapshot{now, f.status, &f.keys}).write(&b); err != nil {
		t.Fatal(err)
	}
	// The toolchain's version is not for a golden file.
	got := b.String()
	i := strings.Index(got, `goversion="`) + len(`goversion="`)
	got = got[:i] + got[i+strings.IndexByte(got[i:], '"'):]
	const golden = "testdata/metrics.txt"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Error(d)
	}
	problems, err := promlint.New(strings.NewReader(got)).Lint()
	if err != nil || len(problems) > 0 {
		t.Errorf("lint: %v, %v", problems, err)
	}
}

// A whole scrape is text that Prometheus can read, without keys, too.
func TestExporter(t *testing.T) {
	f := example(time.Now())
	for _, keys := range []api.Keys{f, nil} {
		var b bytes.Buffer
		if err := New(f, keys).Write(t.Context(), &b); err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]bool{
			"secure_overlay_build_info{": true, "go_goroutines ": true, "process_open_fds ": true, "secure_overlay_key_rotations_total ": keys != nil,
		} {
			if got := strings.Contains(b.String(), "\n"+name); got != want {
				t.Errorf("with keys %v: %q in the text is %v", keys != nil, name, got)
			}
		}
	}
	if ContentType != string(expfmt.NewFormat(expfmt.TypeTextPlain)) {
		t.Errorf("content type is %s", expfmt.NewFormat(expfmt.TypeTextPlain))
	}
	// Epochs that nobody has yet make no numbers up.
	var b bytes.Buffer
	if err := New(fake{}, fake{}).Write(t.Context(), &b); err != nil || strings.Contains(b.String(), "key_epoch_age") || strings.Contains(b.String(), "next_rotation") {
		t.Errorf("empty agent: %v\n%s", err, b.String())
	}
}

func TestExporterFails(t *testing.T) {
	want := errors.New("busy")
	var b bytes.Buffer
	if err := New(fake{err: want}, nil).Write(t.Context(), &b); !errors.Is(err, want) || b.Len() > 0 {
		t.Errorf("got %v and %q", err, b.String())
	}
	if err := New(fake{}, fake{err: want}).Write(t.Context(), &b); !errors.Is(err, want) || b.Len() > 0 {
		t.Errorf("got %v and %q", err, b.String())
	}
}
