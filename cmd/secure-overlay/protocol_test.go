package main

import (
	"bytes"
	"context"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

// floors answers with a floor and notes what it was asked.
type floors struct {
	mu    sync.Mutex
	now   api.Protocol
	err   error
	asked []api.FloorRequest
}

func (f *floors) Protocol(context.Context) (api.Protocol, error) { return f.now, nil }

func (f *floors) SetFloor(_ context.Context, req api.FloorRequest) (api.Protocol, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked = append(f.asked, req)
	if f.err == nil && req.Raise > 0 {
		f.now.Floor = req.Raise
	}
	return f.now, f.err
}

func TestProtocolFloor(t *testing.T) {
	fresh := func() *floors { return &floors{now: api.Protocol{Min: 1, Max: 2, Floor: 1}} }
	refused := fresh()
	refused.err = api.NewError(api.CodeRefused, "these nodes speak a lower version", "update them first")
	for name, c := range map[string]struct {
		f    *floors
		args string
		code int
		out  string
		err  string
	}{
		"shown":            {fresh(), "protocol floor", 0, "floor 1   this program speaks 1 to 2\n", ""},
		"for programs":     {fresh(), "protocol floor -o json", 0, `"floor": 1`, ""},
		"raised":           {fresh(), "protocol floor --raise 2", 0, "floor 2", ""},
		"refused":          {refused, "protocol floor --raise 2", 6, "", "update them first"},
		"both":             {fresh(), "protocol floor --raise 2 --lower 1", 2, "", "contradict"},
		"signed and more":  {fresh(), "protocol floor --signed x --lower 1", 2, "", "as it is"},
		"nothing signed":   {fresh(), "protocol floor --signed x", 2, "", "so-root-signed:"},
		"not lower, asked": {fresh(), "protocol floor --lower 1", 2, "", "not lower"},
		"root key alone":   {fresh(), "protocol floor --root-key x", 2, "", "--lower"},
		"force alone":      {fresh(), "protocol floor --force", 2, "", "--raise"},
		"too high":         {fresh(), "protocol floor --raise 256", 2, "", "256"},
		"not lower":        {fresh(), "protocol floor --lower 1 --root-key x", 2, "", "not lower"},
		"no such command":  {fresh(), "protocol flour", 2, "", "floor"},
	} {
		got := against(t, canned{floors: c.f}, strings.Fields(c.args)...)
		if got.code != c.code || !strings.Contains(got.out, c.out) || !strings.Contains(got.err, c.err) {
			t.Errorf("%s: exit code %d, want %d\n%s\n%s", name, got.code, c.code, got.out, got.err)
		}
	}
	forced := fresh()
	if got := against(t, canned{floors: forced}, "protocol", "floor", "--raise", "2", "--force"); got.code != 0 || !forced.asked[0].Force || forced.asked[0].Raise != 2 {
		t.Errorf("by force: %d, %+v", got.code, forced.asked)
	}
}

// foundedIn is the data directory of a cluster's founder, with the root key in it.
func foundedIn(t *testing.T) (dir string, id keystore.Identity) {
	t.Helper()
	dir = filepath.Join(t.TempDir(), "data")
	store, err := keystore.Init(dir, keystore.InitOptions{Hostname: "a", Now: time.Now()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = store.Close() })
	if id, err = store.Identity(); err != nil {
		t.Fatal(err)
	}
	return dir, id
}

// TestProtocolFloorLowered: the command signs with the root key file, for the
// cluster and the generation that the agent names.
func TestProtocolFloorLowered(t *testing.T) {
	dir, id := foundedIn(t)
	f := &floors{now: api.Protocol{Min: 1, Max: 2, Floor: 2, Generation: 4}}
	c := canned{floors: f, status: api.Status{Cluster: id.Trust.Cluster, Root: id.Trust.Root.String()}}
	got := against(t, c, "protocol", "floor", "--lower", "1", "--root-key", filepath.Join(dir, "root.key"))
	if got.code != 0 || len(f.asked) != 1 {
		t.Fatalf("exit code %d, asked %d times\n%s", got.code, len(f.asked), got.err)
	}
	it, err := item.Verify(id.Trust, time.Now(), f.asked[0].Item)
	if err != nil {
		t.Fatal(err)
	}
	if floor, ok := it.Floor(); !ok || !it.Root || floor.Min != 1 || floor.Generation != 5 {
		t.Errorf("signed %+v", floor)
	}
	if bytes.Contains([]byte(got.out+got.err), []byte("so-root-key")) {
		t.Error("the root key is shown")
	}
	if got := against(t, c, "protocol", "floor", "--lower", "1", "--root-key", dir+"/none"); got.code == 0 || len(f.asked) != 1 {
		t.Errorf("without the file: %d", got.code)
	}
	// The same, with the root key elsewhere.
	got = against(t, c, "protocol", "floor", "--lower", "1")
	request := strings.TrimSpace(got.out)
	if got.code != 0 || len(f.asked) != 1 || !strings.Contains(got.err, "nodes may speak protocol version 1") {
		t.Fatalf("exit code %d, asked %d times\n%s", got.code, len(f.asked), got.err)
	}
	got = against(t, c, "issuer", "sign", "--root-key", filepath.Join(dir, "root.key"), request)
	signed := strings.TrimSpace(got.out)
	if got.code != 0 || !strings.Contains(got.err, "protocol floor --signed") {
		t.Fatalf("exit code %d\n%s", got.code, got.err)
	}
	if got := against(t, c, "protocol", "floor", "--signed", signed); got.code != 0 || len(f.asked) != 2 {
		t.Fatalf("exit code %d, asked %d times\n%s", got.code, len(f.asked), got.err)
	}
	again, err := item.Verify(id.Trust, time.Now(), f.asked[1].Item)
	if err != nil {
		t.Fatal(err)
	}
	if floor, ok := again.Floor(); !ok || floor.Min != 1 || floor.Generation != 5 {
		t.Errorf("signed %+v", floor)
	}
}
