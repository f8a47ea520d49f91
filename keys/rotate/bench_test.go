package rotate

import (
	"fmt"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// BenchmarkPoll measures one turn of an agent, Observe and Poll, in the middle
// of a rotation of all pairs.
func BenchmarkPoll(b *testing.B) {
	for _, peers := range []int{50, 1000} {
		b.Run(fmt.Sprintf("peers=%d", peers), func(b *testing.B) {
			m := New(ids.NodeID{1}, 1, labTiming)
			o := Observation{
				Target: 2, Enabled: true,
				Devices: []Device{{1, 1, 1}, {2, 1, 1}},
				Routes:  map[ids.NodeID]ids.Epoch{},
			}
			for i := range peers {
				id := ids.NodeID{2, byte(i >> 8), byte(i)}
				o.Peers = append(o.Peers, Peer{id, o.Devices})
				o.Routes[id] = 1
				for _, d := range o.Devices {
					o.Installed = append(o.Installed, Installed{Peer: id, Device: d, Theirs: 1, Key: 7, Sends: true})
				}
			}
			now := simStart
			turn := func() Plan {
				m.Observe(now, o)
				return m.Poll(now)
			}
			turn()
			for _, p := range o.Peers {
				m.Receive(now, p.ID, Message{Boot: 9, Seq: 1, AckBoot: 1, AckSeq: 1, Tx: 1, Epochs: []EpochState{{1, 1, 1, 7, true}, {2, 1, 1, 7, false}}})
			}
			b.ReportAllocs()
			for b.Loop() {
				now = now.Add(time.Second)
				if plan := turn(); len(plan.Pairs) != 2*peers {
					b.Fatalf("%d pairs", len(plan.Pairs))
				}
			}
		})
	}
}
