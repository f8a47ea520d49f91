package noisenet

import (
	"errors"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/clock"
)

// TestHandshakeClocks: what a node with a wrong clock makes of a peer with a
// right one, and the peer of it. A clock that is behind lets in whom a right one
// would, and nobody else; one that is ahead errs on the strict side; and neither
// makes the other node refuse anybody.
func TestHandshakeClocks(t *testing.T) {
	c := newTestCluster(1)
	a, b := c.node(10), c.node(20)
	day := 24 * time.Hour
	// The node last ran three hours ago, by what it has kept.
	kept := time.Now().Add(-3 * time.Hour)
	certified := func(n *testNode, begin, end time.Duration) func(*party) {
		return func(p *party) {
			p.credential = c.certify(n, func(cert *keys.Cert) {
				cert.NotBefore, cert.NotAfter = time.Now().Add(begin).Truncate(time.Second), time.Now().Add(end).Truncate(time.Second)
			})
		}
	}
	for name, tc := range map[string]struct {
		off  time.Duration // of the system clock of a
		peer func(*party)  // changes b
		want error
	}{
		"right":                               {},
		"1970":                                {off: -time.Since(time.Unix(0, 0))},
		"a day back":                          {off: -day},
		"a day ahead":                         {off: day},
		"ten years ahead":                     {off: 3652 * day, want: keys.ErrExpired},
		"1970, peer renewed meanwhile":        {off: -time.Since(time.Unix(0, 0)), peer: certified(b, -time.Minute, 30*day)},
		"1970, peer's certificate has ended":  {off: -time.Since(time.Unix(0, 0)), peer: certified(b, -40*time.Minute, -10*time.Minute), want: nil},
		"1970, ended before the node was off": {off: -time.Since(time.Unix(0, 0)), peer: certified(b, -50*time.Minute-3*time.Hour, -10*time.Minute-3*time.Hour), want: keys.ErrExpired},
		"right, peer's begins tomorrow":       {peer: certified(b, day, 30*day), want: keys.ErrNotYetValid},
		"right, peer's has ended":             {peer: certified(b, -40*time.Minute, -10*time.Minute), want: keys.ErrExpired},
	} {
		for _, role := range []string{"initiator", "responder"} {
			t.Run(name+", "+role, func(t *testing.T) {
				pa, pb := a.party(), b.party()
				pa.trust.Tolerance = 5 * time.Minute
				pa.clock = clock.New(clock.Options{
					Trusted: kept, Reach: time.Now().Add(15 * day),
					System: func() time.Time { return time.Now().Add(tc.off) },
				})
				if tc.peer != nil {
					tc.peer(pb)
				}
				var err error
				if role == "initiator" {
					_, _, err = shake(pa, pb, ids.NodeID{}, nil)
				} else {
					_, _, err = shake(pb, pa, ids.NodeID{}, nil)
				}
				if !errors.Is(err, tc.want) || tc.want == nil && err != nil {
					t.Errorf("%v, want %v", err, tc.want)
				}
			})
		}
	}
}
