package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/test/netlab"
	"github.com/secure-overlay/secure-overlay/vxlan"
)

// rate is how fast entries are programmed.
type rate struct {
	Name      string  `json:"name"`
	Entries   int     `json:"entries"`
	PerSecond float64 `json:"per_second"` // median of the rounds
}

// programming sets the entries of remote endpoints, three of each (VXLAN FDB, bridge
// FDB, neighbour), by iproute2 in batches and by ours, alternately: from nothing to
// all. Each round is in a network of its own.
func programming(ctx context.Context, remotes, rounds int) (out []rate, err error) {
	if _, err := exec.LookPath("bridge"); err != nil {
		return nil, errors.New("bridge of iproute2 is missing: apt-get install iproute2")
	}
	lab, err := netlab.New("entries")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	host, err := lab.Host("h")
	if err != nil {
		return nil, err
	}
	p := vxlan.NewProgrammer(vxlan.Options{Host: host.NS(), Dir: filepath.Join(lab.Dir(), "nets")})
	defer func() { err = errors.Join(err, p.Remove(ctx), p.Close()) }()
	batch, ours := rate{Name: "bridge -batch and ip -batch", Entries: 3 * remotes}, rate{Name: "ours", Entries: 3 * remotes}
	var times [2][]float64
	spec := vxlan.Spec{Network: "bench", VNI: 42, Local: host.V4(), Port: 4789, MTU: 1450}
	for range rounds {
		for k, set := range []func() (time.Duration, error){
			func() (time.Duration, error) { return byBatch(ctx, lab, spec, remotes) },
			func() (time.Duration, error) { return byOurs(ctx, p, spec, remotes) },
		} {
			if _, err := p.Sync(ctx, []vxlan.Spec{spec}); err != nil {
				return nil, err
			}
			took, err := set()
			if err != nil {
				return nil, err
			}
			times[k] = append(times[k], float64(3*remotes)/took.Seconds())
			if err := p.Remove(ctx); err != nil {
				return nil, err
			}
		}
	}
	batch.PerSecond, ours.PerSecond = median(times[0]), median(times[1])
	return []rate{batch, ours}, nil
}

func remoteOf(i int) vxlan.Remote {
	var mac ids.MAC
	mac[0] = 2
	binary.BigEndian.PutUint32(mac[2:], uint32(i)) //nolint:gosec // a few thousand
	return vxlan.Remote{
		MAC: mac, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 99, byte(i >> 8), byte(i)})},
		VTEP: netip.AddrFrom4([4]byte{198, 18, 1, byte(i%200 + 1)}),
	}
}

// byOurs includes reading what there is and deciding what to change.
func byOurs(ctx context.Context, p *vxlan.Programmer, spec vxlan.Spec, remotes int) (time.Duration, error) {
	for i := range remotes {
		spec.Remotes = append(spec.Remotes, remoteOf(i))
	}
	start := time.Now()
	_, err := p.Sync(ctx, []vxlan.Spec{spec})
	return time.Since(start), err
}

func byBatch(ctx context.Context, lab *netlab.Lab, spec vxlan.Spec, remotes int) (time.Duration, error) {
	var fdb, neigh strings.Builder
	for i := range remotes {
		r := remoteOf(i)
		fmt.Fprintf(&fdb, "fdb replace %s dev vx1 dst %s self permanent\nfdb replace %s dev vx1 master static\n", r.MAC, r.VTEP, r.MAC)
		fmt.Fprintf(&neigh, "neigh replace %s lladdr %s dev br0 nud permanent\n", r.Addrs[0], r.MAC)
	}
	at := "--net=" + filepath.Join(lab.Dir(), "nets", "net-"+spec.Network)
	start := time.Now()
	for _, c := range []struct{ program, text string }{{"bridge", fdb.String()}, {"ip", neigh.String()}} {
		cmd := exec.CommandContext(ctx, "nsenter", at, c.program, "-batch", "-")
		cmd.Stdin = strings.NewReader(c.text)
		if said, err := cmd.CombinedOutput(); err != nil {
			return 0, fmt.Errorf("%s -batch: %w\n%s", c.program, err, said)
		}
	}
	return time.Since(start), nil
}
