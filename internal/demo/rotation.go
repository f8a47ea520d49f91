package demo

import (
	"context"
	"fmt"
	"time"

	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// Rotation is what became of numbered packets while the keys changed.
type Rotation struct {
	Rotations int     `json:"rotations"` // one after the other, each asked of another host
	Sent      uint64  `json:"sent"`      // packets, both ways between all pairs of hosts
	Lost      uint64  `json:"lost"`
	Seconds   float64 `json:"seconds"` // from the first request until nothing older was left
}

// What the demonstration does at least, and how it sends: a rate that an old
// laptop carries beside everything else.
const (
	rotations = 3
	minSent   = 1000
	totalRate = 1500 // packets per second, over all pairs and ways
)

// rotate changes the keys under load.
func rotate(ctx context.Context, f *fleet.Fleet, at []fleet.Attached, stage func(string)) (Rotation, error) {
	stage(fmt.Sprintf("rotate the keys %d times under load", rotations))
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	points := make([]netlab.Point, len(at))
	for i, a := range at {
		points[i] = netlab.Point{Name: a.Node.Name, NS: a.Box.NS(), Addr: a.V4()}
	}
	ways := len(at) * (len(at) - 1)
	mesh, err := netlab.StartMesh(ctx, netlab.MeshOptions{Points: points, Rate: max(1, totalRate/ways)})
	if err != nil {
		return Rotation{}, err
	}
	defer mesh.Stop()
	if err := mesh.WaitReceived(ctx, 1); err != nil {
		return Rotation{}, err
	}
	var done Rotation
	begin := time.Now()
	for i := range rotations {
		r, err := f.Nodes[i%len(f.Nodes)].Rotate(ctx, "")
		if err != nil {
			return done, err
		}
		if err := f.WaitEpoch(ctx, r.To); err != nil {
			return done, err
		}
		done.Rotations++
	}
	done.Seconds = time.Since(begin).Seconds()
	if err := mesh.WaitReceived(ctx, uint64(minSent/ways)+1); err != nil {
		return done, err
	}
	r := mesh.Stop()
	done.Sent, done.Lost = r.Sent+r.SendErrors, r.Lost()+r.SendErrors
	return done, nil
}
