package metrics

import (
	"maps"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/secure-overlay/secure-overlay/api"
)

// snapshot is one answer of the agent. It is a prometheus.Collector that
// lives for one scrape.
type snapshot struct {
	now    time.Time
	status api.Status
	keys   *api.KeyStatus // nil: the agent has none
}

// Describe implements prometheus.Collector. It sends nothing, which makes the
// collector "unchecked": which families there are depends on the answer.
func (snapshot) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (s snapshot) Collect(ch chan<- prometheus.Metric) {
	e := emitter{ch}
	s.agent(e)
	s.networks(e)
	for _, p := range s.status.Peers {
		if p.Tunnel != api.TunnelNone && p.Tunnel != "" {
			s.peer(e, p)
		}
	}
	s.epochs(e)
	if s.keys != nil {
		s.rotation(e, *s.keys)
	}
}

// emitter sends metrics under this program's prefix.
type emitter struct{ ch chan<- prometheus.Metric }

// labels are pairs of name and value.
type labels [][2]string

func (e emitter) send(kind prometheus.ValueType, name, help string, v float64, l labels) {
	names, values := l.split()
	e.ch <- prometheus.MustNewConstMetric(desc(name, help, names), kind, v, values...)
}

func (e emitter) gauge(name, help string, v float64, l labels) {
	e.send(prometheus.GaugeValue, name, help, v, l)
}

func (e emitter) counter(name, help string, v float64, l labels) {
	e.send(prometheus.CounterValue, name, help, v, l)
}

func desc(name, help string, names []string) *prometheus.Desc {
	return prometheus.NewDesc("secure_overlay_"+name, help, names, nil)
}

func (l labels) split() (names, values []string) {
	for _, p := range l {
		names = append(names, p[0])
		// A node's name comes from another machine. Prometheus refuses
		// a whole scrape for one label that is not UTF-8.
		values = append(values, strings.ToValidUTF8(p[1], "\ufffd"))
	}
	return names, values
}

func (s snapshot) agent(e emitter) {
	st := s.status
	e.gauge("build_info", "Version of the agent; the value is always 1.", 1, labels{{"version", st.Version}, {"goversion", runtime.Version()}})
	e.gauge("node_info", "Names of this node; the value is always 1.", 1, labels{{"node", st.Node.ID.String()}, {"name", st.Node.Name}, {"cluster", st.Cluster.String()}, {"driver", st.Driver.Name}})
	for _, state := range []api.State{api.StateStarting, api.StateOK, api.StateDegraded, api.StateFailed, api.StateStopping} {
		e.gauge("state", "1 for the state that the agent is in, else 0.", truth(st.State == state), labels{{"state", string(state)}})
	}
	e.gauge("members", "Nodes of the cluster, this one included.", float64(st.Members.Total), nil)
	e.gauge("members_alive", "Nodes of the cluster that gossip believes alive.", float64(st.Members.OK), nil)
	e.gauge("problems", "Problems that status lists.", float64(len(st.Problems)), nil)
	e.gauge("warnings", "Warnings that status lists.", float64(len(st.Warnings)), nil)
	s.items(e)
	s.time(e)
}

// time is about clocks and about this node's certificate.
func (s snapshot) time(e emitter) {
	st := s.status
	if !st.Expires.IsZero() {
		e.gauge("certificate_expiry_timestamp_seconds", "When the certificate of this node expires.", seconds(st.Expires), nil)
	}
	c := st.Clock
	e.gauge("clock_behind_seconds", "How far the system clock is behind a time that has certainly passed; 0: it is not, within the tolerance.", duration(c.Behind), nil)
	e.gauge("clock_jump_seconds", "How far the system clock is from where it should be, by what has passed since it was last right; negative: behind.", duration(c.Jumped), nil)
	if c.Others > 0 {
		e.gauge("clock_ahead_seconds", "How far the system clock is ahead of those of most other nodes; negative: behind.", duration(c.Ahead), nil)
	}
}

// items is about what issuers say to the cluster.
func (s snapshot) items(e emitter) {
	st := s.status
	all := append(slices.Clone(st.Problems), st.Warnings...)
	count := func(code string) (n int) {
		for _, p := range all {
			if p.Code == code {
				n++
			}
		}
		return n
	}
	if !st.Heartbeat.IsZero() {
		e.gauge("heartbeat_age_seconds", "Age of the newest sign of life of an issuer.", s.since(st.Heartbeat), nil)
	}
	e.gauge("stale", "1 if no issuer is heard, or if items of one do not come to this node.", truth(count(api.CodeStale) > 0), nil)
	e.gauge("item_conflicts", "Cluster items of which two with one version came to this node.", float64(count(api.CodeConflict)), nil)
	e.gauge("protocol_floor", "Lowest protocol version that the cluster allows.", float64(st.Protocol.Floor), nil)
}

func (s snapshot) networks(e emitter) {
	for _, n := range s.status.Networks {
		l := labels{{"network", n.Name}}
		e.gauge("network_encrypted", "1 if the kernel sends the network's traffic through tunnels only, 0 if it is plaintext.", truth(n.Encrypted), l)
		e.gauge("network_ok", "1 if the network is in state ok.", truth(n.State == api.StateOK), l)
		e.gauge("network_endpoints", "Endpoints of the network on this node.", float64(n.EndpointsHere), l)
		e.gauge("network_peers", "Other nodes on the network.", float64(n.Peers.Total), l)
		e.gauge("network_peers_connected", "Other nodes on the network that are connected.", float64(n.Peers.OK), l)
	}
}

// peerLabels identify a node: its ID, since names need not be unique.
func peerLabels(r api.NodeRef) labels { return labels{{"peer", r.ID.String()}, {"peer_name", r.Name}} }

func (s snapshot) peer(e emitter, p api.Peer) {
	l := peerLabels(p.NodeRef)
	e.gauge("peer_up", "1 if the tunnel to the peer works.", truth(p.Tunnel == api.TunnelUp), l)
	e.counter("peer_receive_bytes_total", "Bytes received through the tunnel from the peer.", float64(p.RxBytes), l)
	e.counter("peer_transmit_bytes_total", "Bytes sent through the tunnel to the peer.", float64(p.TxBytes), l)
	if !p.LastHandshake.IsZero() {
		e.gauge("peer_handshake_age_seconds", "Time since the last handshake with the peer.", s.since(p.LastHandshake), l)
	}
	e.gauge("peer_epoch", "Key epoch on which this node sends to the peer; 0: none.", float64(p.Epoch), l)
	if !p.Expires.IsZero() {
		e.gauge("peer_certificate_expiry_timestamp_seconds", "When the certificate of the peer expires.", seconds(p.Expires), l)
	}
	e.gauge("peer_post_quantum", "1 if the pair's keys hold against a quantum computer, too.", truth(p.PQ), l)
}

func (s snapshot) epochs(e emitter) {
	k := s.status.Keys
	e.gauge("key_epoch", "Newest key epoch of which this node has a device.", float64(s.status.Epoch), nil)
	e.gauge("key_target_epoch", "Key epoch that the cluster should use.", float64(k.Target), nil)
	if !k.Started.IsZero() {
		e.gauge("key_epoch_age_seconds", "Age of the newest key epoch of which this node has a device.", s.since(k.Started), nil)
	}
	if !k.NextRotation.IsZero() {
		e.gauge("key_next_rotation_timestamp_seconds", "When this node will ask for the next epoch.", seconds(k.NextRotation), nil)
	}
	e.gauge("key_blocked", "1 if this node cannot start the target epoch.", truth(k.Blocked != ""), nil)
}

func (s snapshot) rotation(e emitter, k api.KeyStatus) {
	c := k.Counts
	e.counter("key_rotations_total", "Key epochs that this node started.", float64(c.Rotations), nil)
	e.counter("key_refusals_total", "Rotations and pairs that this node refused.", float64(c.Refusals), nil)
	e.ch <- prometheus.MustNewConstSummary(
		desc("key_switch_seconds", "Time from the announcement of an epoch until a pair sent on it.", nil), c.Switches, c.SwitchSeconds, nil)
	e.gauge("key_devices", "Key epochs of which this node has a device.", float64(len(k.Devices)), nil)
	for _, d := range k.Devices {
		for _, why := range slices.Sorted(maps.Keys(d.Dropped)) {
			e.counter("device_dropped_packets_total", "Packets that a tunnel device did not let through, by reason.", float64(d.Dropped[why]),
				labels{{"epoch", strconv.FormatUint(uint64(d.Epoch), 10)}, {"driver", d.Driver}, {"reason", why}})
		}
	}
	for _, p := range k.Peers {
		l := append(peerLabels(p.NodeRef), [2]string{"step", string(p.Step)})
		e.gauge("pair_step", "What the pair with the peer waits for; the value is always 1.", 1, l)
		e.gauge("pair_step_age_seconds", "Time since the pair waits for that.", s.since(p.Since), l)
		e.gauge("pair_full_mtu", "1 if packets of the tunnel's whole MTU arrive.", truth(p.FullMTU), peerLabels(p.NodeRef))
	}
}

// since is the age of t in seconds; 0 if t is not known or lies ahead.
func (s snapshot) since(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return max(0, s.now.Sub(t).Seconds())
}

func duration(d api.Duration) float64 { return time.Duration(d).Seconds() }

func seconds(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
