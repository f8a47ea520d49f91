package membership

import (
	"log/slog"
	"net"
	"testing"

	"github.com/hashicorp/memberlist"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

func TestNotifyAlive(t *testing.T) {
	l := newLab(t)
	nodes := l.cluster(2)
	converge(t, nodes, 2)
	d := delegate{nodes[0].Cluster}
	known, stranger := nodes[1].self, ids.NodeID{77}
	good := func(id ids.NodeID) *memberlist.Node {
		return &memberlist.Node{
			Name: id.String(), Addr: id.InnerAddr().AsSlice(), Port: noisenet.VirtualPort, PMin: 1, PMax: 5, PCur: 2,
		}
	}
	for name, c := range map[string]struct {
		spoil func(*memberlist.Node)
		id    ids.NodeID
		ok    bool
	}{
		"member":           {nil, known, true},
		"this node":        {nil, nodes[0].self, true},
		"stranger":         {nil, stranger, false},
		"name is no ID":    {func(n *memberlist.Node) { n.Name = "node1" }, known, false},
		"upper case name":  {func(n *memberlist.Node) { n.Name = "A" + n.Name[1:] }, known, false},
		"empty name":       {func(n *memberlist.Node) { n.Name = "" }, known, false},
		"other address":    {func(n *memberlist.Node) { n.Addr = stranger.InnerAddr().AsSlice() }, known, false},
		"IPv4 address":     {func(n *memberlist.Node) { n.Addr = net.IPv4(198, 18, 0, 1) }, known, false},
		"no address":       {func(n *memberlist.Node) { n.Addr = nil }, known, false},
		"short address":    {func(n *memberlist.Node) { n.Addr = n.Addr[:3] }, known, false},
		"other port":       {func(n *memberlist.Node) { n.Port++ }, known, false},
		"much metadata":    {func(n *memberlist.Node) { n.Meta = make([]byte, memberlist.MetaMaxSize+1) }, known, false},
		"some metadata":    {func(n *memberlist.Node) { n.Meta = make([]byte, memberlist.MetaMaxSize) }, known, true},
		"minimum too high": {func(n *memberlist.Node) { n.PMin = 3 }, known, false},
		"maximum too low":  {func(n *memberlist.Node) { n.PMax = 1 }, known, false},
		"other protocol":   {func(n *memberlist.Node) { n.PCur = 3 }, known, false},
		"delegate minimum": {func(n *memberlist.Node) { n.DMin = 1 }, known, false},
		"delegate":         {func(n *memberlist.Node) { n.DCur = 1 }, known, false},
	} {
		n := good(c.id)
		if c.spoil != nil {
			c.spoil(n)
		}
		if err := d.NotifyAlive(n); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A stranger alone does not spoil a merge; a false address does.
	if err := d.NotifyMerge([]*memberlist.Node{good(known), good(stranger)}); err != nil {
		t.Errorf("merge with a stranger: %v", err)
	}
	bad := good(known)
	bad.Addr = stranger.InnerAddr().AsSlice()
	if err := d.NotifyMerge([]*memberlist.Node{good(known), bad}); err == nil {
		t.Error("merge with a false address is let in")
	}
}

// TestGossipCarriesNoState: nothing depends on the 512 bytes of metadata or
// on push/pull's user state.
func TestGossipCarriesNoState(t *testing.T) {
	l := newLab(t)
	n := l.start(0)
	n.Publish(content(0, 0))
	n.until("own record", func(s Snapshot) bool { return len(s.Members) == 1 })
	d := delegate{n.Cluster}
	if len(d.NodeMeta(memberlist.MetaMaxSize)) != 0 || len(d.LocalState(true)) != 0 {
		t.Error("gossip carries metadata or user state")
	}
	if got := len(d.AckPayload()); got != ackSizeClock {
		t.Errorf("ack payload has %d bytes, want %d", got, ackSizeClock)
	}
	d.MergeRemoteState([]byte("whatever"), true)
	d.NotifyMsg(nil)
	d.NotifyMsg([]byte("not a hint"))
	d.NotifyConflict(&memberlist.Node{Name: "x"}, &memberlist.Node{Name: "x"})
	d.NotifyPingComplete(&memberlist.Node{Name: "x"}, 0, nil)
	if _, err := (logWriter{slog.New(slog.DiscardHandler)}).Write([]byte("[WARN] line\n")); err != nil {
		t.Error(err)
	}
}

// TestGossipConfig pins what the security of the transport rests on.
func TestGossipConfig(t *testing.T) {
	l := newLab(t)
	for name := range profiles {
		c, err := New(Options{Identity: l.identity(0), Profile: name, NextSeq: func() (uint64, error) { return 1, nil }})
		if err != nil {
			t.Fatal(err)
		}
		conf := c.gossipConfig(nil)
		if conf.SecretKey != nil || conf.Keyring != nil || conf.Label != "" || conf.EnableCompression {
			t.Errorf("%s: memberlist encrypts, labels or compresses", name)
		}
		if !conf.RequireNodeNames || conf.UDPBufferSize != noisenet.PacketSize-relayHead || conf.Name != c.self.String() {
			t.Errorf("%s: names are optional, or packets have %d bytes", name, conf.UDPBufferSize)
		}
		p := c.prof
		if p.probeTimeout >= p.probe || p.tick > p.grace || p.retryMin > p.retryMax || p.retryMax > 30_000_000_000 {
			t.Errorf("%s: timers contradict each other: %+v", name, p)
		}
	}
}
