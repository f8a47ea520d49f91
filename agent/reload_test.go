package agent

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
)

// TestReload: networks come and go with the file, and what cannot be taken up as a
// whole changes nothing.
func TestReload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		green := fileNet("green", 99, true, "10.99.0.0/16")
		m := w.machine(1, blue())
		file, mistake := m.cfg, error(nil)
		m.load = func() (config.Config, error) { return file, mistake }
		m.start()
		at := m.mustAttach("blue", "/ns/1")
		reload := func() (api.Reload, error) { return m.agent.Reload(context.Background()) }
		if r, err := reload(); err != nil || len(r.Changes) != 0 {
			t.Errorf("nothing has changed: %+v, %v", r, err)
		}
		file.Networks = []config.Network{blue(), green}
		file.Keys.RotateEvery = time.Hour
		if r, err := reload(); err != nil || len(r.Changes) != 2 {
			t.Fatalf("%+v, %v", r, err)
		}
		w.until("the new network", func() bool { return m.has("green") && m.has("blue") })

		// Refused as a whole, and said until it is mended.
		file.Networks, file.Data.Port = []config.Network{green}, 4000
		if _, err := reload(); api.CodeOf(err) != api.CodeRefused || !strings.Contains(err.Error(), "data.port") {
			t.Errorf("another port: %v", err)
		}
		w.watch("the former configuration stands", 2*time.Second, func() bool { return m.has("blue") && hasProblem(m.status(), "config-refused") })
		mistake = errors.New("line 3 is no YAML")
		if _, err := reload(); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("a mistake: %v", err)
		}
		mistake, file.Data.Port = nil, m.cfg.Data.Port
		if r, err := reload(); err != nil || len(r.Changes) != 1 || r.Changes[0].Key != "networks[blue]" {
			t.Errorf("%+v, %v", r, err)
		}
		w.until("the network is gone, its endpoint waits", func() bool {
			return !m.has("blue") && m.has("green") && m.fault(at.ID) != "" && !hasProblem(m.status(), "config-refused")
		})
		file.Networks = []config.Network{blue(), green}
		if _, err := reload(); err != nil {
			t.Error(err)
		}
		w.until("it is back with its endpoint", func() bool { return m.has("blue") && m.fault(at.ID) == "" })
	})
}

// fault is what an endpoint's status says is wrong.
func (m *machine) fault(id string) string {
	m.w.t.Helper()
	list, err := m.agent.Endpoints(context.Background())
	if err != nil {
		m.w.t.Fatal(err)
	}
	for _, e := range list {
		if e.ID == id {
			return e.Problem
		}
	}
	return "gone"
}
