package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"sync"

	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// controlPort is where members listen.
const controlPort = 7946

// member is a node that takes part in the cluster with the identity in a data folder
// and publishes what it is told to, but has no kernel state. It ends with its
// input.
func member(ctx context.Context, dir string, in io.Reader) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	store, err := keystore.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	id, err := store.Identity()
	if err != nil {
		return err
	}
	c, err := membership.New(membership.Options{
		Identity: id, Bind: netip.AddrPortFrom(netip.IPv6Unspecified(), controlPort), Profile: config.ProfileLocal,
		Seeds: store.Seeds(), NextSeq: store.NextSeq, Keys: store,
	})
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	var runErr error
	wg.Go(func() { runErr = c.Run(ctx) })
	err = orders(in, c, id.ID)
	cancel()
	wg.Wait()
	return errors.Join(err, runErr)
}

func orders(in io.Reader, c *membership.Cluster, self ids.NodeID) error {
	dec := json.NewDecoder(in)
	for {
		var p publication
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read an order: %w", err)
		}
		c.Publish(p.record(self))
	}
}

// record has one endpoint for each number from First on, with an address of each
// subnet.
func (p publication) record(self ids.NodeID) record.Node {
	n := record.Node{
		ID: self, Underlay: []record.Underlay{{Control: netip.AddrPortFrom(p.Underlay, controlPort), MTU: 1500}},
		Networks: []record.Network{{Name: p.Network, VNI: p.VNI, Subnets: p.Subnets, VTEPPort: 4789}},
	}
	for i := range p.Count {
		var a record.Attached
		for _, s := range p.Subnets {
			a.Addrs = append(a.Addrs, numbered(s.Addr(), uint32(p.First+i)+256)) //nolint:gosec // some thousands
		}
		a.VNI, a.MAC = p.VNI, ids.EndpointMAC(p.VNI, a.Addrs[0])
		n.Attached = append(n.Attached, a)
	}
	return n.Canonical()
}

// numbered is an address with its last 4 bytes increased.
func numbered(a netip.Addr, by uint32) netip.Addr {
	b := a.AsSlice()
	low := b[len(b)-4:]
	binary.BigEndian.PutUint32(low, binary.BigEndian.Uint32(low)+by)
	out, _ := netip.AddrFromSlice(b)
	return out
}
