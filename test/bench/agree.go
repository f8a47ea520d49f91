package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/membertest"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// agreements is how many agreements are timed, and agreePause the pause between
// two, which keeps them below the limit on handshakes of one address.
const (
	agreements = 30
	agreePause = 100 * time.Millisecond
)

// measureAgree times agreements of two nodes of this process over loopback.
func measureAgree(ctx context.Context, c *costs) (err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	var running sync.WaitGroup
	defer func() {
		cancel()
		running.Wait()
	}()
	auth, err := membertest.New("bench", time.Now().Add(-time.Hour))
	if err != nil {
		return err
	}
	var known addresses
	var ends [2]*noisenet.Transport
	var nodes [2]ids.NodeID
	for i := range ends {
		id, err := auth.Member(fmt.Sprint("node", i), uint64(i+1), time.Now().Add(-time.Minute))
		if err != nil {
			return err
		}
		t := noisenet.New(noisenet.Config{
			Node: id.ID, Trust: id.Trust, Noise: id.Noise, Credential: id.Credential, Access: id.Access,
			Bind: netip.MustParseAddrPort("127.0.0.1:0"), Directory: &known,
			Agree: func(context.Context, noisenet.Peer, []byte) ([]byte, func(keys.TunnelSecret), error) {
				return nil, nil, nil
			},
		})
		if err := t.Open(); err != nil {
			return fmt.Errorf("measure agreements: %w", err)
		}
		known.set(id.ID, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), t.Port()))
		running.Go(func() { _ = t.Run(ctx) })
		ends[i], nodes[i] = t, id.ID
	}
	defer func() { err = errors.Join(err, ends[0].Shutdown(), ends[1].Shutdown()) }()
	var took []time.Duration
	for range agreements {
		begin := time.Now()
		a, err := ends[0].Agree(ctx, nodes[1], nil)
		if err != nil {
			return fmt.Errorf("measure agreements: %w", err)
		}
		took = append(took, time.Since(begin))
		a.Secret.Wipe()
		select {
		case <-time.After(agreePause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.Agree = median(took)
	return nil
}

// addresses is where the nodes of a measurement are.
type addresses struct {
	mu   sync.Mutex
	byID map[ids.NodeID]netip.AddrPort
}

func (a *addresses) set(id ids.NodeID, addr netip.AddrPort) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.byID == nil {
		a.byID = make(map[ids.NodeID]netip.AddrPort)
	}
	a.byID[id] = addr
}

// Underlay implements noisenet.Directory.
func (a *addresses) Underlay(id ids.NodeID) []netip.AddrPort {
	a.mu.Lock()
	defer a.mu.Unlock()
	return []netip.AddrPort{a.byID[id]}
}
