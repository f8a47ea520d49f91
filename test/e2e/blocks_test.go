package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// smallNetwork has 16 blocks of 16 addresses, so that nodes meet in them.
func smallNetwork() []fleet.Network {
	return []fleet.Network{{Name: "lab", Subnets: prefixes("10.78.0.0/24")}}
}

// TestBlocks cuts the oldest of three nodes, which is the issuer, too, off from the others.
// All go on within the blocks that they have. The two get new ones. The one waits, says for
// whom, and gets what is left when the cut is over. No block has two owners, also after
// all agents were killed.
func TestBlocks(t *testing.T) {
	ctx, f := prepareWith(t, timeout, fleet.Options{Nodes: 3, Networks: smallNetwork(), Profile: suited()})
	if err := f.Start(ctx); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	attachAll(t, ctx, f, "lab")
	t.Logf("three first endpoints took %v", time.Since(begin).Round(time.Millisecond))
	oldest, second := f.Nodes[0], f.Nodes[1]
	free := freeBlocks(t, ctx, f)
	taken, left := free[0].Addr().Next().Next(), free[1].Addr().Next().Next()

	separate(t, oldest, f.Nodes[1:], true)
	for _, n := range f.Nodes {
		attach(t, ctx, f, n, "lab")
	}
	begin = time.Now()
	if a := attach(t, ctx, f, second, "lab", "--ip", taken.String()); a.V4() != taken {
		t.Errorf("asked for %s, got %s", taken, a.V4())
	}
	t.Logf("a new block in the majority took %v", time.Since(begin).Round(time.Millisecond))

	type result struct {
		at  fleet.Attached
		err error
	}
	ask := func(ip netip.Addr) chan result {
		box, err := f.Lab.Container("waits-" + strings.ReplaceAll(ip.String(), ".", "-"))
		if err != nil {
			t.Fatal(err)
		}
		out := make(chan result, 1)
		go func() {
			at, err := f.AttachBox(ctx, oldest, box, "lab", "--ip", ip.String())
			out <- result{at, err}
		}()
		return out
	}
	same, other := ask(taken), ask(left)
	if err := oldest.WaitStatus(ctx, "the problem block-waiting", func(s api.Status) bool {
		for _, p := range s.Problems {
			if p.Code == "block-waiting" {
				return strings.Contains(p.Message, "1 of 3 votes, 2 are needed") && strings.Contains(p.Message, second.Name)
			}
		}
		return false
	}); err != nil {
		t.Fatal(err)
	}
	select {
	case r := <-same:
		t.Fatalf("the minority gave %s: %v", r.at.V4(), r.err)
	case r := <-other:
		t.Fatalf("the minority gave %s: %v", r.at.V4(), r.err)
	default:
	}
	settledOnce(t, f)

	separate(t, oldest, f.Nodes[1:], false)
	begin = time.Now()
	if r := <-other; r.err != nil || r.at.V4() != left {
		t.Errorf("after healing: %v, %v", r.at.V4(), r.err)
	}
	t.Logf("the block that waited was there %v after healing", time.Since(begin).Round(time.Millisecond))
	if r := <-same; r.err == nil || !strings.Contains(r.err.Error(), second.Name) {
		t.Errorf("an address that the majority has given: %v, %v", r.at.V4(), r.err)
	}
	for _, n := range f.Nodes {
		if err := n.WaitStatus(ctx, "no problem", func(s api.Status) bool { return len(s.Problems) == 0 }); err != nil {
			t.Fatal(err)
		}
	}
	before := settledOnce(t, f)

	for _, n := range f.Nodes {
		if err := n.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range f.Nodes {
		if err := n.Up(ctx); err != nil {
			t.Fatal(err)
		}
	}
	for _, n := range f.Nodes {
		attach(t, ctx, f, n, "lab")
	}
	if after := settledOnce(t, f); after < before {
		t.Errorf("%d blocks have an owner, there were %d", after, before)
	}
}

// separate comes between one node and others, or ends that.
func separate(t *testing.T, n *fleet.Node, others []*fleet.Node, cut bool) {
	t.Helper()
	var list []netlab.Block
	for _, o := range others {
		for _, proto := range []uint8{tcp, udp, esp} {
			if cut {
				list = append(list, netlab.Block{With: o.Host, Out: true, In: true, Proto: proto})
			}
		}
	}
	if err := n.Host.Block(list...); err != nil {
		t.Fatal(err)
	}
}

// freeBlocks are those of the small network that no node shows as its own.
func freeBlocks(t *testing.T, ctx context.Context, f *fleet.Fleet) (free []netip.Prefix) {
	t.Helper()
	taken := map[netip.Prefix]bool{}
	for _, n := range f.Nodes {
		s, err := n.Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, nw := range s.Networks {
			for _, b := range nw.Blocks {
				taken[b] = true
			}
		}
	}
	if len(taken) < len(f.Nodes) {
		t.Fatalf("%d nodes show blocks %v", len(f.Nodes), taken)
	}
	for i := byte(1); i < 15; i++ { // not those with reserved addresses
		if b := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 78, 0, i * 16}), 28); !taken[b] {
			free = append(free, b)
		}
	}
	return free
}

// settledOnce reads what is on the disks of all nodes: it returns how many blocks have
// an owner, and none may have two.
func settledOnce(t *testing.T, f *fleet.Fleet) int {
	t.Helper()
	owner := map[string]string{}
	for _, n := range f.Nodes {
		b, err := os.ReadFile(filepath.Join(n.DataDir(), "promises.json"))
		if err != nil {
			t.Fatal(err)
		}
		var file struct {
			Body struct {
				Promises []string `json:"promises"`
			} `json:"body"`
		}
		if err := json.NewDecoder(bytes.NewReader(b)).Decode(&file); err != nil {
			t.Fatal(err)
		}
		for _, line := range file.Body.Promises {
			words := strings.Fields(line)
			if words[len(words)-1] != "settled" {
				continue
			}
			block := words[0] + " " + words[1]
			if o, twice := owner[block]; twice {
				t.Errorf("%s belongs to %s and to %s", block, o, n.Name)
			}
			owner[block] = n.Name
		}
	}
	return len(owner)
}
