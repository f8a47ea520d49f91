package agent

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

// TestFloor: what is asked reaches the cluster, what it refuses is explained, and
// a floor that this program does not meet is a problem.
func TestFloor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, blue()), w.machine(2, blue())
		a.start()
		b.start()
		w.until("epoch 1", func() bool { return a.on(1, 1) && b.on(1, 1) })
		ctx := context.Background()
		show := func() api.Protocol {
			t.Helper()
			p, err := a.agent.Protocol(ctx)
			if err != nil {
				t.Fatal(err)
			}
			return p
		}
		if p := show(); p != (api.Protocol{Min: 1, Max: 2, Floor: 1}) || a.status().Protocol != p {
			t.Errorf("at the start: %+v", p)
		}
		old := func(version uint8) {
			w.board.set(func() {
				m := w.board.members[b.id]
				m.Version = version
				w.board.members[b.id] = m
			})
		}
		old(1)
		set := func(req api.FloorRequest) (api.Protocol, error) { return a.agent.SetFloor(ctx, req) }
		for name, c := range map[string]struct {
			req   api.FloorRequest
			code  api.Code
			words string
		}{
			"shuts nodes out": {api.FloorRequest{Raise: 2}, api.CodeRefused, "web-2"},
			"above itself":    {api.FloorRequest{Raise: 3, Force: true}, api.CodeInvalid, "version 2 at most"},
			"not the root's":  {api.FloorRequest{Item: []byte("forged")}, api.CodeInvalid, "root key of this cluster"},
		} {
			if _, err := set(c.req); api.CodeOf(err) != c.code || !strings.Contains(fullText(err), c.words) {
				t.Errorf("%s: %s, %s", name, api.CodeOf(err), fullText(err))
			}
		}
		w.board.set(func() { w.board.noRevoker = true })
		if _, err := set(api.FloorRequest{Raise: 2, Force: true}); api.CodeOf(err) != api.CodeRefused || !strings.Contains(fullText(err), "issuer key") {
			t.Errorf("without issuer key: %s", fullText(err))
		}
		w.board.set(func() { w.board.noRevoker = false })
		if p, err := set(api.FloorRequest{Raise: 2, Force: true}); err != nil || p.Floor != 2 {
			t.Errorf("by force: %+v, %v", p, err)
		}
		if p, err := set(api.FloorRequest{Item: []byte{1}}); err != nil || p.Floor != 1 || p.Generation != 1 || show() != p {
			t.Errorf("by the root: %+v, %v", p, err)
		}
		old(2)
		if p, err := set(api.FloorRequest{Raise: 2}); err != nil || p.Floor != 2 {
			t.Errorf("when all speak it: %+v, %v", p, err)
		}
		if s := a.status(); hasProblem(s, "protocol-floor") {
			t.Errorf("a floor that is met: %+v", s.Problems)
		}
		w.board.set(func() { w.board.floor.Min = 3 })
		w.until("a problem", func() bool { return hasProblem(a.status(), "protocol-floor") })
		if !a.on(1, 1) || !a.knows(b.id) {
			t.Error("the tunnels went, too")
		}
	})
}

func TestFloorErrors(t *testing.T) {
	if err := floorError(membership.ErrFloorOld, ""); api.CodeOf(err) != api.CodeRefused {
		t.Error(err)
	}
	if err := floorError(membership.ErrIssuerRevoked, ""); api.CodeOf(err) != api.CodeRefused || !strings.Contains(fullText(err), "issuer ls") {
		t.Error(err)
	}
	if err := floorError(item.ErrMalformed, ""); api.CodeOf(err) != api.CodeInvalid {
		t.Error(err)
	}
	if err := floorError(membership.ErrNotRunning, ""); err != membership.ErrNotRunning {
		t.Error(err)
	}
}
