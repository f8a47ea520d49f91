package membership

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership/membertest"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// rogue is a member with a valid certificate that plays by no rules.
type rogue struct {
	t  *testing.T
	id keystore.Identity
	*fakeTransport
}

// rogue puts a hostile member on the net. Its own record is an honest one.
func (l *lab) rogue(i int, handler noisenet.Handler) *rogue {
	l.t.Helper()
	id := l.identity(i)
	r := &rogue{t: l.t, id: id, fakeTransport: l.net.transport(noisenet.Config{
		Node: id.ID, Credential: id.Credential, Bind: addrOf(i), Handler: handler,
	}).(*fakeTransport)}
	if err := r.Open(); err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { _ = r.Shutdown() })
	return r
}

func (r *rogue) entry(n record.Node) record.Entry {
	r.t.Helper()
	n.ID = r.id.ID
	raw, err := record.Sign(n, r.id.Node)
	if err != nil {
		r.t.Fatal(err)
	}
	return record.Entry{Credential: r.id.Credential, Record: raw}
}

func (r *rogue) push(to ids.NodeID, entries ...record.Entry) error {
	_, err := r.Call(context.Background(), to, pushRequest([32]byte{}, entries))
	return err
}

// packet sends one memberlist message.
func (r *rogue) packet(to ids.NodeID, b []byte) {
	r.t.Helper()
	if _, err := r.WriteToAddress(b, memberlist.Address{Addr: virtualAddr(to).String(), Name: to.String()}); err != nil {
		r.t.Fatal(err)
	}
}

// forgeries are entries about victim that its owner did not make.
func (r *rogue) forgeries(victim record.Entry) map[string]record.Entry {
	n, err := record.Parse(victim.Record)
	if err != nil {
		r.t.Fatal(err)
	}
	n.Seq += 1000
	n.Attached = nil
	body := record.Encode(n)
	sig := r.id.Node.Sign(record.Domain, body[len(record.Domain):])
	forged := append(body, sig[:]...)
	altered := append([]byte(nil), victim.Record...)
	altered[len(record.Domain)+16] ^= 0x80 // the sequence number
	return map[string]record.Entry{
		"victim's certificate, own signature": {Credential: victim.Credential, Record: forged},
		"own certificate, own signature":      {Credential: r.id.Credential, Record: forged},
		"own certificate, victim's record":    {Credential: r.id.Credential, Record: victim.Record},
		"altered sequence number":             {Credential: victim.Credential, Record: altered},
		"no record":                           {Credential: victim.Credential},
	}
}

// TestForgedRecords: a member hands over records of others, as a push and as
// an answer to SYNC and GET. None is accepted and nothing else changes.
func TestForgedRecords(t *testing.T) {
	l := newLab(t)
	nodes := l.cluster(3)
	converge(t, nodes, 3)
	victim := nodes[2].view.Load().set.Get(nodes[2].self).Entry
	var forged []record.Entry
	r := l.rogue(8, func(_ context.Context, _ noisenet.Peer, req []byte) ([]byte, error) {
		if req[0] == kindSync {
			return syncAnswer{Entries: forged}.encode(), nil
		}
		return getAnswer([32]byte{}, forged), nil
	})
	for _, e := range r.forgeries(victim) {
		forged = append(forged, e)
	}
	before := nodes[0].Snapshot().Digest
	for name, e := range r.forgeries(victim) {
		for range 20 {
			if err := r.push(nodes[0].self, e); err == nil {
				t.Errorf("%s: push was accepted", name)
			}
		}
	}
	if nodes[0].Snapshot().Digest != before {
		t.Error("a forged record changed the set")
	}
	l.waitLogs("sent an invalid record", 1) // the answer may come before the line
	if got := l.log.count("sent an invalid record"); got != 1 {
		t.Errorf("%d log lines about the rogue, want 1", got)
	}
	// With a record of its own it is contacted, and answers with forgeries.
	if err := r.push(nodes[1].self, r.entry(record.Node{})); err != nil {
		t.Fatal(err)
	}
	nodes[1].until("the rogue's own record", func(s Snapshot) bool { return len(s.Members) == 4 })
	l.waitLogs("sent an invalid record", 3) // each honest node found out
	for _, n := range nodes {
		n.until("all records", func(s Snapshot) bool { return len(s.Members) == 4 })
		if got := n.view.Load().set.Get(nodes[2].self); !got.Holds(victim) {
			t.Errorf("node %d holds a forged record: %+v", n.i, got.Node)
		}
	}
}

// TestForgedGossip: dead, suspect, leave and alive messages for others change
// what is displayed for a while, and no record.
func TestForgedGossip(t *testing.T) {
	l := newLab(t)
	nodes := l.cluster(3)
	converge(t, nodes, 3)
	r := l.rogue(8, nil)
	before := nodes[0].Snapshot()
	vsn := []byte{1, 5, 2, 0, 0, 0}
	stranger := ids.NodeID{42}
	forgedDeathShows(l, r, nodes)
	for round := range uint32(200) {
		for _, to := range nodes {
			for _, victim := range nodes {
				v, inc := victim.self, round+10
				r.packet(to.self, membertest.Dead(inc, v, r.id.ID))
				r.packet(to.self, membertest.Dead(inc, v, v)) // "it left"
				r.packet(to.self, membertest.Suspect(inc, v, r.id.ID))
				// Taking over the name with another address, or spoiling
				// the protocol versions of all.
				r.packet(to.self, membertest.Alive(inc+5, v.String(), r.id.ID.InnerAddr().AsSlice(), 7946, vsn))
				r.packet(to.self, membertest.Alive(inc+5, v.String(), []byte{198, 18, 0, 1}, 7946, vsn))
				r.packet(to.self, membertest.Alive(inc+5, v.String(), v.InnerAddr().AsSlice(), 22, vsn))
				r.packet(to.self, membertest.Alive(inc+5, v.String(), v.InnerAddr().AsSlice(), 7946, []byte{5, 5, 5, 0, 0, 0}))
			}
			r.packet(to.self, membertest.Alive(1, stranger.String(), stranger.InnerAddr().AsSlice(), 7946, vsn))
			r.packet(to.self, membertest.Alive(1, "not-a-node-id", []byte{198, 18, 0, 1}, 7946, vsn))
		}
	}
	for _, n := range nodes {
		n.until("all alive again", whole(3))
		s := n.Snapshot()
		if s.Digest != before.Digest {
			t.Errorf("node %d: forged gossip changed the records:\n%s", n.i, describe(s))
		}
	}
	nodes[0].Publish(content(0, 1))
	for _, n := range nodes {
		n.until("a new record", shows(nodes[0].self, 0, 1))
	}
	if l.log.count("sent an invalid record") != 0 {
		t.Error("an honest node was accused")
	}
}

// forgedDeathShows is the positive control: a forged message does reach
// memberlist and does change what is displayed, while the victim is cut off
// and cannot object.
func forgedDeathShows(l *lab, r *rogue, nodes []*node) {
	l.t.Helper()
	a, b := nodes[0].self, nodes[1].self
	l.net.setBroken(func(from, to ids.NodeID) bool { return from == b || to == b })
	r.packet(a, membertest.Dead(5, b, r.id.ID))
	nodes[0].until("the forged death", func(s Snapshot) bool {
		m, _ := s.Member(b)
		return m.State == StateDead
	})
	l.net.setBroken(nil)
	nodes[0].until("the victim back", whole(3))
}

// TestHintFlood: hints prove nothing, so no number of them has an effect
// beyond a bounded number of requests.
func TestHintFlood(t *testing.T) {
	l := newLab(t)
	nodes := l.cluster(3)
	converge(t, nodes, 3)
	r := l.rogue(8, nil)
	before := nodes[0].Snapshot().Digest
	rng := rand.New(rand.NewPCG(1, 1))
	for range 20_000 {
		h := hint{Seq: rng.Uint64(), Holder: nodes[1].self}
		binary.BigEndian.PutUint64(h.Node[:], rng.Uint64())
		if rng.IntN(2) == 0 {
			h.Node = nodes[2].self
		}
		r.packet(nodes[0].self, append([]byte{membertest.User}, h.encode()...))
	}
	nodes[2].Publish(content(2, 1))
	nodes[0].until("a new record", shows(nodes[2].self, 2, 1))
	nodes[0].until("all alive", whole(3))
	if nodes[0].Snapshot().Digest == before {
		t.Error("digest did not change with the record")
	}
}

// TestLostBroadcasts: with every hint lost, digests in ping answers alone
// bring the sets together.
func TestLostBroadcasts(t *testing.T) {
	l := newLab(t)
	var dropped int
	l.net.setDrop(func(_, _ ids.NodeID, b []byte) bool {
		lost := hasUserMessage(b)
		if lost {
			dropped++
		}
		return lost
	})
	nodes := l.cluster(5)
	converge(t, nodes, 5)
	for v := range 3 {
		nodes[v].Publish(content(v, 100))
	}
	for _, n := range nodes {
		for v := range 3 {
			n.until("content 100", shows(nodes[v].self, v, 100))
		}
	}
	l.net.mu.Lock()
	defer l.net.mu.Unlock()
	if dropped == 0 {
		t.Error("no hint was dropped: the test proves nothing")
	}
}

// hasUserMessage looks into a packet: checksum, compound, user message.
func hasUserMessage(b []byte) bool {
	if len(b) > 5 && b[0] == 12 {
		b = b[5:]
	}
	if b[0] != 7 {
		return b[0] == membertest.User
	}
	n := int(b[1])
	lengths, b := b[2:2+2*n], b[2+2*n:]
	for i := range n {
		size := int(binary.BigEndian.Uint16(lengths[2*i:]))
		if b[0] == membertest.User {
			return true
		}
		b = b[size:]
	}
	return false
}

// TestLostPackets: without any packet there are no pings answered and no
// gossip; SYNC over streams still brings the records to everybody.
func TestLostPackets(t *testing.T) {
	l := newLab(t)
	l.net.setDrop(func(_, _ ids.NodeID, _ []byte) bool { return true })
	nodes := l.cluster(4)
	for _, n := range nodes {
		n.until("all records", func(s Snapshot) bool { return len(s.Members) == 4 })
	}
	nodes[3].Publish(content(3, 1))
	for _, n := range nodes {
		n.until("content 1 of node 3", shows(nodes[3].self, 3, 1))
	}
}

// TestHalfOfPacketsLost keeps publishing while every second packet is lost.
func TestHalfOfPacketsLost(t *testing.T) {
	l := newLab(t)
	rng := rand.New(rand.NewPCG(7, 7)) // used under the net's lock
	l.net.setDrop(func(_, _ ids.NodeID, _ []byte) bool { return rng.IntN(2) == 0 })
	nodes := l.cluster(5)
	for v := range 20 {
		nodes[v%5].Publish(content(v%5, v+1))
	}
	for _, n := range nodes {
		for i := range 5 {
			n.until("newest content", shows(nodes[i].self, i, i+16))
		}
	}
}

// TestTwoRecordsWithOneNumber: a member tells two nodes different things under
// one sequence number. All end up with the same one.
func TestTwoRecordsWithOneNumber(t *testing.T) {
	l := newLab(t)
	nodes := l.cluster(3)
	converge(t, nodes, 3)
	r := l.rogue(8, nil)
	for v, n := range nodes[:2] {
		c := content(8, v)
		c.Seq = 9
		if err := r.push(n.self, r.entry(c)); err != nil {
			t.Fatal(err)
		}
	}
	l.waitLog("two records with one sequence number")
	for _, n := range nodes {
		n.until("the rogue's record", func(s Snapshot) bool { return len(s.Members) == 4 })
	}
	var lower record.Entry
	for v := range 2 {
		c := content(8, v)
		c.Seq = 9
		if e := r.entry(c); v == 0 || bytes.Compare(sum(e.Record), sum(lower.Record)) < 0 {
			lower = e
		}
	}
	for _, n := range nodes {
		n.until("the record with the lower hash", func(Snapshot) bool {
			return bytes.Equal(n.view.Load().set.Get(r.id.ID).Entry.Record, lower.Record)
		})
	}
}

func sum(b []byte) []byte {
	h := sha256.Sum256(b)
	return h[:]
}

// TestEndlessSync: a peer that always has more does not keep a node busy.
func TestEndlessSync(t *testing.T) {
	l := newLab(t)
	n := l.start(0)
	n.Publish(content(0, 0))
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	var calls int
	r := l.rogue(8, func(_ context.Context, _ noisenet.Peer, req []byte) ([]byte, error) {
		if req[0] == kindSync {
			calls++
		}
		return syncAnswer{More: true}.encode(), nil
	})
	var res result
	err := n.sync(context.Background(), r.id.ID, &res)
	if !errors.Is(err, errMessage) || calls != 1 {
		t.Errorf("sync gave %v after %d calls, want no progress after 1", err, calls)
	}
	if res.complete {
		t.Error("sync counts as done")
	}
}

// TestBadRequests sends what no client sends.
func TestBadRequests(t *testing.T) {
	l := newLab(t)
	n := l.start(0)
	n.Publish(content(0, 0))
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	r := l.rogue(8, nil)
	good := syncRequest{Heads: []record.Head{{ID: ids.NodeID{1}}, {ID: ids.NodeID{2}}}}.encode()
	swapped := syncRequest{Heads: []record.Head{{ID: ids.NodeID{2}}, {ID: ids.NodeID{1}}}}.encode()
	for name, req := range map[string][]byte{
		"empty":            {},
		"kind only":        {kindSync},
		"unknown kind":     {99, version},
		"unknown version":  {kindSync, 2},
		"truncated":        good[:len(good)-1],
		"extended":         append(append([]byte(nil), good...), 0),
		"heads unordered":  swapped,
		"push of nothing":  {kindPush, version},
		"push too many":    append(append([]byte{kindPush, version}, make([]byte, 32)...), 0xff, 0xff, 0xff, 0xff),
		"get of nothing":   {kindGet, version},
		"get too many":     getRequest(make([]ids.NodeID, maxGet+1)),
		"get with a tail":  append(getRequest([]ids.NodeID{{1}}), 0),
		"answer as a call": syncAnswer{}.encode(),
	} {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		if _, err := r.Call(ctx, n.self, req); err == nil || !strings.Contains(err.Error(), "malformed") {
			t.Errorf("%s: %v, want malformed", name, err)
		}
		cancel()
	}
	if _, err := r.Call(context.Background(), n.self, good); err != nil {
		t.Errorf("good request: %v", err)
	}
}

// TestSecondCopy: two processes with one identity do not shout each other
// down without end.
func TestSecondCopy(t *testing.T) {
	l := newLab(t)
	n := l.start(0)
	n.Publish(content(0, 0))
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	id := l.identity(0)
	r := l.rogue(8, nil)
	echoes := 0
	for range 50 {
		m, _ := n.Snapshot().Member(n.self)
		c := content(0, 500+echoes)
		c.ID, c.Seq = id.ID, m.Record.Seq+1
		raw, err := record.Sign(c, id.Node)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.push(n.self, record.Entry{Credential: id.Credential, Record: raw}); err != nil {
			t.Fatal(err)
		}
		echoes++
	}
	m, _ := n.Snapshot().Member(n.self)
	if m.Record.Seq > uint64(2*echoes) {
		t.Errorf("sequence is %d after %d echoes", m.Record.Seq, echoes)
	}
	if answered := m.Record.Seq - uint64(echoes); answered > 5 {
		t.Errorf("%d of %d echoes were answered at once, want a growing pause", answered, echoes)
	}
	if got := l.log.count("knows a newer record of this node"); got != 1 {
		t.Errorf("%d warnings, want 1", got)
	}
	n.until("the true content", shows(n.self, 0, 0))
}
