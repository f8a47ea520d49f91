package membership

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// gossipConfig configures memberlist: no encryption, compression or labels of
// its own, because every byte travels inside Noise and noisenet refuses those
// message types; names required, because noisenet finds the peer by name.
func (c *Cluster) gossipConfig(transport memberlist.Transport) *memberlist.Config {
	p, conf := c.prof, memberlist.DefaultLANConfig()
	conf.Name = c.self.String()
	conf.Transport = transport
	conf.AdvertiseAddr = c.self.InnerAddr().String()
	conf.AdvertisePort, conf.BindPort = noisenet.VirtualPort, noisenet.VirtualPort
	conf.RequireNodeNames = true
	conf.EnableCompression = false
	conf.SecretKey, conf.Keyring, conf.Label = nil, nil, ""
	conf.UDPBufferSize = noisenet.PacketSize - relayHead
	conf.DNSConfigPath = "" // addresses are virtual; nothing is ever resolved

	conf.ProbeInterval, conf.ProbeTimeout = p.probe, p.probeTimeout
	conf.GossipInterval, conf.GossipNodes, conf.GossipToTheDeadTime = p.gossip, p.gossipNodes, p.gossipToDead
	conf.PushPullInterval, conf.TCPTimeout = p.pushPull, p.stream
	conf.SuspicionMult, conf.IndirectChecks = p.suspicionMult, p.indirect

	d := delegate{c}
	conf.Delegate, conf.Events, conf.Alive, conf.Merge, conf.Conflict, conf.Ping = d, d, d, d, d, d
	conf.Logger = log.New(logWriter{c.log}, "", 0)
	return conf
}

// delegate receives memberlist's callbacks. They may run under memberlist's
// locks, so each one copies, enqueues without waiting, and returns.
type delegate struct{ c *Cluster }

// virtualAddr is the only address at which memberlist may know a node.
func virtualAddr(id ids.NodeID) netip.AddrPort {
	return netip.AddrPortFrom(id.InnerAddr(), noisenet.VirtualPort)
}

// gossipName is how memberlist.Join wants a node: its name and address.
func gossipName(id ids.NodeID) string { return id.String() + "/" + virtualAddr(id).String() }

// checkIdentity refuses a name that is no node ID and an address that is not
// the virtual address of that ID. So memberlist can neither be pointed at an
// address of an attacker's choice (pings carry addresses), nor can a name be
// taken over by a node elsewhere: noisenet reaches a virtual address only
// through a handshake with the key that the ID is a hash of.
func checkIdentity(n *memberlist.Node) (ids.NodeID, error) {
	id, err := ids.ParseNodeID(n.Name)
	if err != nil {
		return id, err
	}
	addr, ok := netip.AddrFromSlice(n.Addr)
	if want := virtualAddr(id); !ok || addr != want.Addr() || n.Port != want.Port() {
		return id, fmt.Errorf("check node %s: %s is not its virtual address", id, net.JoinHostPort(n.Addr.String(), strconv.Itoa(int(n.Port))))
	}
	if len(n.Meta) > memberlist.MetaMaxSize {
		return id, fmt.Errorf("check node %s: %d bytes of metadata", id, len(n.Meta))
	}
	return id, nil
}

// checkVersions wants the versions this build speaks to be spoken. memberlist
// computes one common range over all nodes: a single alive message with a
// range of its own would make every node refuse every push/pull.
func checkVersions(n *memberlist.Node) error {
	const v = memberlist.ProtocolVersion2Compatible
	if n.PMin > v || n.PMax < v || n.PCur != v || n.DMin != 0 || n.DCur != 0 {
		return fmt.Errorf("check node %s: protocol %d in %d..%d, delegate %d in %d..%d, want %d and 0",
			n.Name, n.PCur, n.PMin, n.PMax, n.DCur, n.DMin, n.DMax, v)
	}
	return nil
}

// NotifyAlive lets a node into gossip only if it is a member for certain:
// its record, with the certificate, is in the set. Whoever is unknown may be
// new, so the loop is told to look for its record.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	id, err := checkIdentity(n)
	if err != nil {
		return err
	}
	if err := checkVersions(n); err != nil {
		return err
	}
	if id == d.c.self {
		return nil
	}
	if d.c.refuse(id) {
		return fmt.Errorf("check node %s: %w", id, d.c.refusal(id))
	}
	if d.c.view.Load().set.Get(id) == nil {
		d.c.post(event{kind: eventStranger, node: id})
		return fmt.Errorf("check node %s: no verified record yet", id)
	}
	return nil
}

// NotifyMerge refuses a whole push/pull if it holds an impossible name or
// address. Nodes without a record are not refused here but one by one in
// NotifyAlive, which memberlist asks about each of them afterwards.
func (d delegate) NotifyMerge(nodes []*memberlist.Node) error {
	for _, n := range nodes {
		if _, err := checkIdentity(n); err != nil {
			return err
		}
	}
	return nil
}

// NotifyConflict cannot happen while NotifyAlive refuses every address but
// one per name.
func (d delegate) NotifyConflict(existing, other *memberlist.Node) {
	d.c.log.Debug("gossip reported two addresses for one node", logkey.Node, existing.Name)
}

// NotifyJoin implements memberlist.EventDelegate.
func (d delegate) NotifyJoin(*memberlist.Node) { d.c.post(event{kind: eventGossip}) }

// NotifyLeave implements memberlist.EventDelegate.
func (d delegate) NotifyLeave(*memberlist.Node) { d.c.post(event{kind: eventGossip}) }

// NotifyUpdate implements memberlist.EventDelegate: metadata carries nothing.
func (d delegate) NotifyUpdate(*memberlist.Node) {}

// NodeMeta implements memberlist.Delegate. What a node says about itself is
// in its record, which is signed and larger than the 512 bytes here.
func (d delegate) NodeMeta(int) []byte { return nil }

// NotifyMsg receives a hint, a cluster item or a heartbeat.
func (d delegate) NotifyMsg(b []byte) {
	if to, packet, ok := parseRelay(b); ok {
		d.c.relay(to, packet)
		return
	}
	if h, ok := parseHint(b); ok {
		d.c.post(event{kind: eventHint, hint: h})
	}
	if raw, ok := parseItemMessage(b); ok {
		d.c.post(event{kind: eventItem, item: bytes.Clone(raw)})
	}
	if raw, ok := parseBeatMessage(b); ok {
		d.c.post(event{kind: eventItem, item: bytes.Clone(raw)})
	}
}

// GetBroadcasts implements memberlist.Delegate.
func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.c.hints.GetBroadcasts(overhead, limit)
}

// LocalState implements memberlist.Delegate: records travel by SYNC, where
// they can be compared first and their size is bounded.
func (d delegate) LocalState(bool) []byte { return nil }

// MergeRemoteState implements memberlist.Delegate.
func (d delegate) MergeRemoteState([]byte, bool) {}

// AckPayload implements memberlist.PingDelegate.
func (d delegate) AckPayload() []byte {
	a := d.c.view.Load().ack
	a.Clock = time.Now()
	return a.encode()
}

// NotifyPingComplete compares the digests that came with the answer to a ping.
func (d delegate) NotifyPingComplete(n *memberlist.Node, _ time.Duration, payload []byte) {
	id, err := ids.ParseNodeID(n.Name)
	if err != nil {
		return
	}
	e := event{kind: eventSeen, node: id}
	if a, ok := parseAck(payload); ok {
		e.digest, e.hasDigest = a.Digest, true
		e.items, e.hasItems = a.Items, a.HasItems
		e.clock = a.Clock
	}
	d.c.post(e)
}

// hintBroadcast queues a hint; a newer one about the same node replaces it.
type hintBroadcast struct {
	node ids.NodeID
	msg  []byte
}

// Name implements memberlist.NamedBroadcast.
func (b hintBroadcast) Name() string { return b.node.String() }

// Invalidates implements memberlist.Broadcast.
func (b hintBroadcast) Invalidates(o memberlist.Broadcast) bool {
	other, ok := o.(hintBroadcast)
	return ok && other.node == b.node
}

// Message implements memberlist.Broadcast.
func (b hintBroadcast) Message() []byte { return b.msg }

// Finished implements memberlist.Broadcast.
func (b hintBroadcast) Finished() {}

// logWriter turns memberlist's lines into debug lines: what matters to an
// operator is logged by the loop, once per change, and memberlist's warnings
// include every message it refuses.
type logWriter struct{ log *slog.Logger }

// Write implements io.Writer.
func (w logWriter) Write(b []byte) (int, error) {
	if w.log.Enabled(context.Background(), slog.LevelDebug) {
		w.log.Debug("gossip", logkey.Reason, strings.TrimSpace(string(b)))
	}
	return len(b), nil
}
