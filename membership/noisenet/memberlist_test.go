package noisenet

import (
	"testing"
	"time"

	"github.com/hashicorp/memberlist"
)

// gossip is a memberlist over a running transport, with the settings that the
// transport asks for.
func gossip(t *testing.T, r *running) *memberlist.Memberlist {
	t.Helper()
	conf := memberlist.DefaultLocalConfig()
	conf.Name = r.node.id.String()
	conf.Transport = r.Transport
	conf.BindPort, conf.AdvertisePort = VirtualPort, VirtualPort
	conf.UDPBufferSize = PacketSize
	conf.EnableCompression = false
	conf.RequireNodeNames = true
	conf.ProbeInterval, conf.ProbeTimeout = 300*time.Millisecond, 150*time.Millisecond
	// A starved machine may lose both transmissions of a message; then only
	// push/pull repairs, by default after 15 s.
	conf.PushPullInterval = time.Second
	conf.LogOutput = r.log
	m, err := memberlist.Create(conf)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = m.Shutdown()
		if t.Failed() {
			t.Logf("log of %s:\n%s", r.node.id, r.log.text())
		}
	})
	return m
}

func alive(m *memberlist.Memberlist, want int) func() bool {
	return func() bool { return m.NumMembers() == want }
}

// TestMemberlistCluster forms a cluster of three over loopback: two nodes know
// the address of the first only, and of each other nothing but what gossip and
// the directory (in the agent: signed records) give.
func TestMemberlistCluster(t *testing.T) {
	c := newTestCluster(1)
	var nodes []*running
	var lists []*memberlist.Memberlist
	for i := range 3 {
		r := start(t, c.node(byte(10+i)), nil)
		nodes = append(nodes, r)
		lists = append(lists, gossip(t, r))
	}
	for _, a := range nodes {
		for _, b := range nodes {
			if a != b {
				a.dir.set(b.node.id, b.addr())
			}
		}
	}
	seed := nodes[0].node
	for _, i := range []int{1, 2} {
		p, err := nodes[i].Contact(testContext(t), nodes[0].addr())
		if err != nil || p.ID != seed.id {
			t.Fatalf("contact: %v, %v", p.ID, err)
		}
		if _, err := lists[i].Join([]string{seed.id.String() + "/" + address(seed).Addr}); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range lists {
		eventually(t, "three members everywhere", alive(m, 3))
	}
	// Every member is known by its virtual address only.
	for _, n := range lists[2].Members() {
		if n.Port != VirtualPort || n.Addr.To4() != nil || n.Addr[0] != 0xfd {
			t.Errorf("member %s has address %s", n.Name, n.Address())
		}
	}
	// One dies: the others notice. It comes back as a new process on another
	// port: they find it by its record.
	nodes[2].stop()
	_ = lists[2].Shutdown()
	for _, m := range lists[:2] {
		eventually(t, "the dead member is noticed", alive(m, 2))
	}
	back := start(t, c.node(12), nil)
	back.dir.set(seed.id, nodes[0].addr())
	back.dir.set(nodes[1].node.id, nodes[1].addr())
	for _, r := range nodes[:2] {
		r.dir.set(back.node.id, back.addr())
	}
	m := gossip(t, back)
	if _, err := m.Join([]string{seed.id.String() + "/" + address(seed).Addr}); err != nil {
		t.Fatal(err)
	}
	for _, m := range []*memberlist.Memberlist{lists[0], lists[1], m} {
		eventually(t, "three members after the return", alive(m, 3))
	}
	for _, r := range []*running{nodes[0], nodes[1], back} {
		if n := r.log.count("gossip packet refused"); n != 0 {
			t.Errorf("the inner filter refused %d packets of memberlist itself", n)
		}
	}
}

// TestMemberlistLargePacket fills packets to the brim: memberlist adds its CRC
// after it has filled one.
func TestMemberlistLargePacket(t *testing.T) {
	c := newTestCluster(1)
	a, b := start(t, c.node(10), nil), start(t, c.node(20), nil)
	a.dir.set(b.node.id, b.addr())
	b.dir.set(a.node.id, a.addr())
	ma, mb := gossip(t, a), gossip(t, b)
	if _, err := ma.Join([]string{b.node.id.String() + "/" + address(b.node).Addr}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "two members", alive(mb, 2))
	for _, n := range ma.Members() {
		if n.Name != b.node.id.String() {
			continue
		}
		if err := ma.SendBestEffort(n, make([]byte, PacketSize-1)); err != nil {
			t.Errorf("packet of %d bytes: %v", PacketSize, err)
		}
		if err := ma.SendBestEffort(n, make([]byte, PacketSize)); err == nil {
			t.Error("one byte more was sent")
		}
		if err := ma.SendReliable(n, make([]byte, 1<<20)); err != nil {
			t.Errorf("reliable message of 1 MiB: %v", err)
		}
	}
}
