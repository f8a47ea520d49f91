package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// TestEndpointNames: an endpoint is called as the request says, or as its namespace is,
// and others learn it with its record.
func TestEndpointNames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.machine(1, lab()).start()
		b := w.machine(2, lab()).start()
		mac := ids.MAC{2, 0, 0, 0, 0, 9}
		for path, c := range map[string]struct {
			req  api.AttachRequest
			want string
		}{
			"/run/netns/Web": {api.AttachRequest{Services: []string{"z", "b"}, MAC: mac}, "web"},
			"/run/netns/c_1": {api.AttachRequest{}, ""}, // its ID
			"/run/netns/c2":  {api.AttachRequest{Name: "other"}, "other"},
			"/srv/netns/c3":  {api.AttachRequest{}, ""},
		} {
			c.req.Network, c.req.Netns = "lab", path
			e, err := a.agent.Attach(context.Background(), c.req)
			if want := cmp.Or(c.want, e.ID); err != nil || e.Name != want {
				t.Errorf("%s is called %q, want %q (%v)", path, e.Name, want, err)
			}
		}
		w.until("the names", func() bool {
			list, err := b.agent.Endpoints(context.Background())
			return err == nil && slices.ContainsFunc(list, func(e api.Endpoint) bool {
				return e.Name == "web" && e.MAC == mac && slices.Equal(e.Services, []string{"b", "z"})
			})
		})
	})
}

// TestAttachRefusals checks what is refused, how it is said and that nothing
// is left of it.
func TestAttachRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		vault := blue()
		vault.Name, vault.VNI, vault.Driver = "vault", 7000, config.DriverIPsec
		a, b := w.machine(1, lab(), blue(), vault).start(), w.machine(2, lab()).start()
		other := b.mustAttach("lab", "/run/netns/c9")
		w.until("the other node's block", func() bool { return len(a.overlay.spec("lab").Remotes) == 1 })
		block := w.board.record(b.id).Networks[0].Blocks[0]
		inBlock := block.Addr().Next().Next()
		a.mustAttach("lab", "/run/netns/c0", "10.78.0.99")

		for name, c := range map[string]struct {
			req  api.AttachRequest
			code api.Code
			want string // in the message or the fix
		}{
			"misspelt network":  {api.AttachRequest{Network: "bleu", Netns: "/run/netns/c1"}, api.CodeNotFound, "blue"},
			"other network":     {api.AttachRequest{Network: "production", Netns: "/run/netns/c1"}, api.CodeNotFound, "lab, blue, vault"},
			"missing driver":    {api.AttachRequest{Network: "vault", Netns: "/run/netns/c1"}, api.CodeRefused, "driver"},
			"missing namespace": {api.AttachRequest{Network: "lab", Netns: "/run/netns/missing"}, api.CodeNotFound, "/run/netns/missing"},
			"no namespace":      {api.AttachRequest{Network: "lab", Netns: "/etc/hosts"}, api.CodeInvalid, "not a network namespace"},
			"outside":           {withAddr("lab", "10.99.0.1"), api.CodeInvalid, "10.78.0.0/24"},
			"gateway":           {withAddr("lab", "10.78.0.1"), api.CodeRefused, "reserved"},
			"broadcast":         {withAddr("lab", "10.78.0.255"), api.CodeRefused, "reserved"},
			"taken there":       {withAddr("lab", other.Addresses[0].Addr().String()), api.CodeRefused, "web-2"},
			"taken here":        {withAddr("lab", "10.78.0.99"), api.CodeRefused, "this node"},
			"other's block":     {withAddr("lab", inBlock.String()), api.CodeRefused, "web-2"},
			"link exists":       {api.AttachRequest{Network: "lab", Netns: "/run/netns/c1", Ifname: "taken0"}, api.CodeRefused, "--ifname"},
			"MAC there":         {api.AttachRequest{Network: "lab", Netns: "/run/netns/c1", MAC: other.MAC}, api.CodeRefused, "web-2"},
			"MAC of gateway":    {api.AttachRequest{Network: "lab", Netns: "/run/netns/c1", MAC: gatewayMAC(lab())}, api.CodeRefused, "gateway"},
			"no gateway":        {api.AttachRequest{Network: "lab", Netns: "/run/netns/c1", DefaultRoute: true}, api.CodeRefused, "no gateway namespace"},
			"another name":      {api.AttachRequest{Network: "lab", Netns: "/run/netns/c0", Name: "web"}, api.CodeRefused, "detach"},
			"another service":   {api.AttachRequest{Network: "lab", Netns: "/run/netns/c0", Services: []string{"web"}}, api.CodeRefused, "detach"},
			"contradiction":     {api.AttachRequest{Network: "lab", Netns: "/run/netns/c0", Ifname: "eth7"}, api.CodeRefused, "detach"},
		} {
			_, err := a.agent.Attach(context.Background(), c.req)
			var e *api.Error
			if !errors.As(err, &e) || e.Code != c.code || !strings.Contains(e.Message+" "+e.Fix, c.want) {
				t.Errorf("%s: %v (%+v), want %s with %q", name, err, e, c.code, c.want)
			}
		}
		if n := len(a.overlay.spec("lab").Endpoints); n != 1 {
			t.Errorf("%d endpoints are left, want 1", n)
		}
	})
}

func withAddr(network, addr string) api.AttachRequest {
	return api.AttachRequest{Network: network, Netns: "/run/netns/c1", Addresses: []netip.Addr{netip.MustParseAddr(addr)}}
}

// TestAttachRepeats: the same request gives the same endpoint, also to
// callers at the same time; a second network gets the next interface name.
func TestAttachRepeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.machine(1, blue(), lab()).start()
		results := make(chan api.Endpoint, 2)
		for range 2 {
			go func() {
				e, err := a.attach("blue", "/run/netns/c1")
				if err != nil {
					t.Error(err)
				}
				results <- e
			}()
		}
		first, second := <-results, <-results
		if first.ID == "" || first.ID != second.ID {
			t.Errorf("two endpoints: %+v, %+v", first, second)
		}
		if e := a.mustAttach("lab", "/run/netns/c1"); e.Ifname != "eth1" {
			t.Errorf("interface on the second network is %s", e.Ifname)
		}
		if e := a.mustAttach("blue", "/run/netns/c1", first.Addresses[0].Addr().String()); e.ID != first.ID {
			t.Errorf("with its own address: %+v", e)
		}
	})
}

// TestAttachFailureIsUndone: what the kernel refuses leaves nothing behind.
func TestAttachFailureIsUndone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.machine(1, lab()).start()
		a.overlay.broken["eth0"] = vxlan.ErrNameTaken
		_, err := a.attach("lab", "/run/netns/c1")
		if api.CodeOf(err) != api.CodeRefused || !errors.Is(err, vxlan.ErrNameTaken) {
			t.Errorf("name taken: %v", err)
		}
		a.overlay.mu.Lock()
		a.overlay.broken["eth0"] = errors.New("no buffer space available")
		a.overlay.mu.Unlock()
		start := time.Now()
		_, err = a.attach("lab", "/run/netns/c1")
		if api.CodeOf(err) != api.CodeTimeout || !strings.Contains(err.Error(), "buffer space") {
			t.Errorf("kernel refuses: %v", err)
		}
		if d := time.Since(start); d > attachTimeout+time.Second {
			t.Errorf("gave up after %v", d)
		}
		w.until("the endpoint to go", func() bool { return len(a.overlay.spec("lab").Endpoints) == 0 })
		if list, err := (files{dir: a.cfg.RuntimeDir}).loadAttachments(); err != nil || len(list) != 0 {
			t.Errorf("attachments.json holds %v, %v", list, err)
		}
		a.overlay.mu.Lock()
		delete(a.overlay.broken, "eth0")
		a.overlay.mu.Unlock()
		a.mustAttach("lab", "/run/netns/c1")
	})
}

// TestEndpointGone: an endpoint whose namespace ended is forgotten, in memory
// and on disk, and others learn it.
func TestEndpointGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.machine(1, lab()).start()
		e := a.mustAttach("lab", "/run/netns/c1")
		a.overlay.mu.Lock()
		a.overlay.broken["eth0"] = vxlan.ErrEndpointGone
		a.overlay.mu.Unlock()
		w.until("the endpoint to go", func() bool { return len(w.board.record(a.id).Attached) == 0 })
		if list, _ := (files{dir: a.cfg.RuntimeDir}).loadAttachments(); len(list) != 0 {
			t.Errorf("attachments.json holds %v", list)
		}
		if err := a.agent.Detach(context.Background(), e.ID); api.CodeOf(err) != api.CodeNotFound {
			t.Errorf("detach: %v", err)
		}
	})
}

// TestClaimSettles: while members are alive that do not confirm, an address
// is given out only when the claim has its age; with confirmation at once.
func TestClaimSettles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.board.unsync = true
		a, _ := w.machine(1, lab()).start(), w.machine(2, lab()).start()
		w.until("ready", func() bool { return a.status().Ready })
		start := time.Now()
		a.mustAttach("lab", "/run/netns/c1")
		if d := time.Since(start); d < settleTime-time.Second || d > settleTime+time.Second {
			t.Errorf("unconfirmed claim settled after %v, want about %v", d, settleTime)
		}
		w.board.set(func() { w.board.unsync = false })
		c := w.machine(3, lab()).start()
		start = time.Now()
		c.mustAttach("lab", "/run/netns/c2")
		if d := time.Since(start); d > settleTime/2 {
			t.Errorf("confirmed claim settled after %v", d)
		}
	})
}

// TestDetachByPrefix finds endpoints by the beginning of their ID.
func TestDetachByPrefix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a := w.machine(1, lab()).start()
		e := a.mustAttach("lab", "/run/netns/c1")
		a.mustAttach("lab", "/run/netns/c2")
		if err := a.agent.Detach(context.Background(), ""); api.CodeOf(err) != api.CodeNotFound {
			t.Errorf("empty prefix: %v", err)
		}
		if err := a.agent.Detach(context.Background(), e.ID); err != nil {
			t.Errorf("whole ID: %v", err)
		}
		if err := a.agent.Detach(context.Background(), e.ID); api.CodeOf(err) != api.CodeNotFound {
			t.Errorf("twice: %v", err)
		}
	})
}

// TestSubnetFull: a burst that needs more blocks than the node has waits for
// them; one that needs more than there are is refused.
func TestSubnetFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machine(2, blue()).start() // confirms claims
		tiny := lab()
		tiny.Subnets = []netip.Prefix{netip.MustParsePrefix("10.78.0.0/27")} // 16 blocks of 2
		a := w.machine(1, tiny).start()
		results := make(chan error, 40)
		for i := range 40 {
			go func() {
				_, err := a.attach("lab", fmt.Sprint("/run/netns/c", i))
				results <- err
			}()
		}
		got := 0
		for range 40 {
			switch err := <-results; {
			case err == nil:
				got++
			case api.CodeOf(err) != api.CodeRefused && api.CodeOf(err) != api.CodeTimeout:
				t.Error(err)
			}
		}
		if want := 32 - 3; got != want {
			t.Errorf("%d endpoints got an address, want %d", got, want)
		}
	})
}
