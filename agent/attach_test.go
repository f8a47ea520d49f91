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

	"github.com/secure-overlay/secure-overlay/agent/ipam"
	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/netdef"
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

// TestClaimNeedsMajority: a block is handed out from when more than half of the
// members have granted it, whoever is dead, and not before; who waits is told for whom.
func TestClaimNeedsMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b, c := w.machine(1, lab()).start(), w.machine(2, lab()).start(), w.machine(3).start()
		start := time.Now()
		a.mustAttach("lab", "/run/netns/c1")
		b.mustAttach("lab", "/run/netns/c1")
		if d := time.Since(start); d > time.Second {
			t.Errorf("two first addresses took %v", d)
		}
		d := w.machine(4, lab()).start()
		w.until("four members", func() bool { return len(d.voters()) == 4 && len(a.voters()) == 4 })
		d.mustAttach("lab", "/run/netns/c1")
		b.kill()
		c.kill()
		// What a node has it goes on to hand out, and more of it.
		d.mustAttach("lab", "/run/netns/c2")
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		free := w.freeAddr()
		req := withAddr("lab", free)
		req.Netns = "/run/netns/c3"
		_, err := d.agent.Attach(ctx, req)
		var e *api.Error
		if !errors.As(err, &e) || e.Code != api.CodeTimeout {
			t.Fatalf("with half of the members: %v", err)
		}
		for _, want := range []string{"waits for a majority", "2 of 4 votes", "3 are needed", "web-2", "web-3"} {
			if !strings.Contains(e.Message, want) {
				t.Errorf("error %q does not say %q", e.Message, want)
			}
		}
		if s := d.status(); !hasProblem(s, "block-waiting") || hasProblem(a.status(), "block-waiting") {
			t.Errorf("problems %v", s.Problems)
		}
		c.start()
		if got := d.mustAttach("lab", "/run/netns/c3", free).Addresses[0].Addr().String(); got != free {
			t.Errorf("address %s", got)
		}
		w.until("no problem", func() bool { return !hasProblem(d.status(), "block-waiting") })
	})
}

// TestClaimInMinority: a node that is cut off hands out the rest of its blocks and gets
// no new one; what it wants then is refused when it is back and the majority has given
// it to another, and it settles on something else.
func TestClaimInMinority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b, c := w.machine(1, lab()).start(), w.machine(2, lab()).start(), w.machine(3, lab()).start()
		for _, m := range []*machine{a, b, c} {
			m.mustAttach("lab", "/run/netns/c1")
		}
		free := w.freeAddr()
		w.board.isolate(a.id) // the oldest, which would win every dispute
		a.mustAttach("lab", "/run/netns/c2")
		inMinority := make(chan error, 1)
		go func() {
			_, err := a.attach("lab", "/run/netns/c3", free)
			inMinority <- err
		}()
		<-time.After(time.Second)
		b.mustAttach("lab", "/run/netns/c3", free)
		<-time.After(4 * time.Second)
		select {
		case err := <-inMinority:
			t.Fatalf("in the minority: %v", err)
		default:
		}
		if !hasProblem(a.status(), "block-waiting") {
			t.Errorf("problems %v", a.status().Problems)
		}
		w.board.set(func() { delete(w.board.cut, a.id) })
		err := <-inMinority
		if api.CodeOf(err) != api.CodeRefused || !strings.Contains(err.Error(), "web-2") {
			t.Errorf("back again: %v", err)
		}
		w.until("no problem", func() bool {
			return !hasProblem(a.status(), "block-waiting") && !hasProblem(b.status(), "block-disputed")
		})
		a.mustAttach("lab", "/run/netns/c3")
		w.oneOwner()
	})
}

// TestClaimsOutliveTheAgent: blocks that are settled stay so over a restart of every
// agent, and one that ends in between does not.
func TestClaimsOutliveTheAgent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		all := []*machine{w.machine(1, lab()).start(), w.machine(2, lab()).start(), w.machine(3, lab()).start()}
		var before [][]string
		for _, m := range all {
			m.mustAttach("lab", "/run/netns/c1")
			before = append(before, m.settled())
		}
		for _, m := range all {
			m.kill()
		}
		all[0].start() // alone, of three
		all[0].mustAttach("lab", "/run/netns/c2")
		all[1].start()
		all[2].start()
		for i, m := range all {
			if got := m.settled(); !slices.Equal(got, before[i]) {
				t.Errorf("node %d has %v, had %v", i+1, got, before[i])
			}
		}
		// Down gives all of it back.
		if _, err := all[2].agent.Down(context.Background(), api.DownRequest{}); err != nil {
			t.Fatal(err)
		}
		for _, p := range all[2].disk.kept.List {
			if p.To == all[2].id {
				t.Errorf("after down the disk has %+v", p)
			}
		}
		w.oneOwner()
	})
}

// TestClaimNeedsTheDisk: a promise that cannot be written is not made.
func TestClaimNeedsTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		a, b := w.machine(1, lab()).start(), w.machine(2, lab())
		a.mustAttach("lab", "/run/netns/c1")
		a.disk.breaks(errors.New("no space left"))
		b.start()
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		if _, err := b.agent.Attach(ctx, api.AttachRequest{Network: "lab", Netns: "/run/netns/c1"}); api.CodeOf(err) != api.CodeTimeout {
			t.Errorf("attached: %v", err)
		}
		a.disk.breaks(nil)
		b.mustAttach("lab", "/run/netns/c1")
		b.disk.breaks(errors.New("no space left"))
		ctx, cancel2 := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel2()
		free := w.freeAddr()
		req := withAddr("lab", free)
		req.Netns = "/run/netns/c2"
		if _, err := b.agent.Attach(ctx, req); api.CodeOf(err) != api.CodeTimeout || !hasProblem(b.status(), "state-not-saved") {
			t.Errorf("attached without a disk: %v, %v", err, b.status().Problems)
		}
		b.disk.breaks(nil)
		b.mustAttach("lab", "/run/netns/c2", free)
	})
}

// voters are those that a node counts.
func (m *machine) voters() []ipam.Voter { return m.agent.blocks.ledger().Electorate().Voters }

// settled are the blocks that are surely a node's.
func (m *machine) settled() (out []string) {
	for _, o := range m.agent.blocks.ledger().Own(m.id) {
		if o.Settled {
			out = append(out, o.Block.String())
		}
	}
	return out
}

// freeAddr is an address of lab in a block that nobody has.
func (w *world) freeAddr() string {
	subnet := lab().Subnets[0]
	taken := map[netip.Prefix]bool{}
	w.board.set(func() {
		for _, m := range w.board.members {
			for _, n := range m.Record.Networks {
				for _, b := range n.Blocks {
					taken[b] = true
				}
			}
		}
	})
	b, ok := pickBlock(ids.NodeID{9}, netdef.Options{}, subnet, taken)
	if !ok {
		w.t.Fatal("no block is free")
	}
	return addressesOf(netdef.Options{}, subnet, b)[0].String()
}

// oneOwner checks that no block is settled by two nodes.
func (w *world) oneOwner() {
	w.t.Helper()
	owner := map[ipam.Block]ids.NodeID{}
	w.board.mu.Lock()
	defer w.board.mu.Unlock()
	for id, a := range w.board.agents {
		for _, o := range a.blocks.ledger().Own(id) {
			if first, taken := owner[o.Block]; o.Settled && taken {
				w.t.Errorf("%s is settled by %s and %s", o.Block, first.Short(), id.Short())
			} else if o.Settled {
				owner[o.Block] = id
			}
		}
	}
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
