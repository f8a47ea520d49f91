package netlab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// Point is a place in which numbered packets start and end.
type Point struct {
	Name string
	NS   *nl.Namespace
	Addr netip.Addr // inside NS
}

// MeshOptions says what flows between all pairs of points, in both directions.
type MeshOptions struct {
	Points []Point
	Rate   int // packets per second of each flow; default 1000
	Size   int // UDP payload bytes; default 200
	Marker []byte
	Late   time.Duration // as in FlowOptions
}

// Mesh is one Flow from every point to every other. Its methods may be called
// from several goroutines.
type Mesh struct {
	names []string
	flows []*Flow
}

// StartMesh starts the flows. The caller calls Stop.
func StartMesh(ctx context.Context, o MeshOptions) (*Mesh, error) {
	m := &Mesh{}
	for _, from := range o.Points {
		for _, to := range o.Points {
			if from.Name == to.Name {
				continue
			}
			f, err := StartUDPFlow(ctx, FlowOptions{
				From: from.NS, To: to.NS, Dst: netip.AddrPortFrom(to.Addr, 0),
				Rate: o.Rate, Size: o.Size, Marker: o.Marker, Late: o.Late,
			})
			if err != nil {
				m.Stop()
				return nil, fmt.Errorf("from %s to %s: %w", from.Name, to.Name, err)
			}
			m.names = append(m.names, from.Name+" to "+to.Name)
			m.flows = append(m.flows, f)
		}
	}
	return m, nil
}

// WaitReceived waits until each flow has received n more packets, or ctx ends.
func (m *Mesh) WaitReceived(ctx context.Context, n uint64) error {
	goals := make([]uint64, len(m.flows))
	for i, f := range m.flows {
		goals[i] = f.Result().Received + n
	}
	for i, f := range m.flows {
		err := waitFor(ctx, func() bool { return f.Result().Received >= goals[i] },
			func() string {
				return fmt.Sprintf("%s: %d of %d packets arrived", m.names[i], f.Result().Received, goals[i])
			})
		if err != nil {
			return err
		}
	}
	return nil
}

// Result returns the sum until now. Packets under way count as lost.
func (m *Mesh) Result() FlowResult { return m.sum((*Flow).Result) }

// Stop ends all flows and returns their sum; LongestGap and LongestDelay are those
// of the worst.
func (m *Mesh) Stop() FlowResult {
	for _, f := range m.flows {
		f.cancel() // all at once, so that none of them sends while another waits
	}
	return m.sum((*Flow).Stop)
}

func (m *Mesh) sum(of func(*Flow) FlowResult) FlowResult {
	var s FlowResult
	for _, f := range m.flows {
		r := of(f)
		s.Sent += r.Sent
		s.SendErrors += r.SendErrors
		s.Received += r.Received
		s.Duplicated += r.Duplicated
		s.Reordered += r.Reordered
		s.Corrupt += r.Corrupt
		s.Stalls += r.Stalls
		s.Late += r.Late
		s.LongestDelay = max(s.LongestDelay, r.LongestDelay)
		s.LongestGap = max(s.LongestGap, r.LongestGap)
	}
	return s
}

// Check returns nil if every packet that a flow sent arrived once and intact,
// else what is wrong, flow by flow. Call it after Stop.
func (m *Mesh) Check() error {
	var errs []error
	for i, f := range m.flows {
		r := f.Result()
		if r.Lost() != 0 || r.SendErrors != 0 || r.Duplicated != 0 || r.Corrupt != 0 || r.Sent == 0 {
			errs = append(errs, fmt.Errorf("%s: lost %d, refused %d, duplicated %d, corrupt %d of %d packets, longest gap %v",
				m.names[i], r.Lost(), r.SendErrors, r.Duplicated, r.Corrupt, r.Sent, r.LongestGap))
		}
	}
	return errors.Join(errs...)
}
