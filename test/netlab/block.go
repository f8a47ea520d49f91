package netlab

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Block says which packets of a host's wire the switch throws away. The host
// notices nothing but their absence.
type Block struct {
	Out, In bool   // what the host sends; what is sent to it
	Proto   uint8  // IP protocol (unix.IPPROTO_UDP, ...); 0: every frame, ARP included
	Port    uint16 // destination port of Proto; 0: all
	With    *Host  // only what goes between the two; nil: whatever the other end is
}

// Cut is the Block of everything in both directions: the host keeps its
// carrier, unlike after Disconnect.
func Cut() Block { return Block{Out: true, In: true} }

// blockTable holds one chain per blocked host.
const blockTable = "netlab"

// Block makes the switch throw away what any of blocks names, instead of what
// an earlier call named. Without blocks everything passes again.
func (h *Host) Block(blocks ...Block) error {
	c, err := nftables.New(nftables.WithNetNSFd(h.lab.sw.ns.FD()))
	if err != nil {
		return fmt.Errorf("block packets of %s: %w", h.name, err)
	}
	table := c.AddTable(&nftables.Table{Name: blockTable, Family: nftables.TableFamilyBridge})
	chain := c.AddChain(&nftables.Chain{
		Name: h.port, Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	c.FlushChain(chain)
	for _, b := range blocks {
		for _, key := range b.directions() {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: b.rule(key, h.port)})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("block packets of %s: %w", h.name, err)
	}
	return nil
}

// directions says by which of the bridge's ports a packet is known.
func (b Block) directions() []expr.MetaKey {
	var keys []expr.MetaKey
	if b.Out {
		keys = append(keys, expr.MetaKeyIIFNAME)
	}
	if b.In {
		keys = append(keys, expr.MetaKeyOIFNAME)
	}
	return keys
}

// rule drops what comes in or goes out by a port and fits the block.
func (b Block) rule(key expr.MetaKey, port string) []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, port)
	rule := []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
	}
	if b.With != nil {
		other := make([]byte, unix.IFNAMSIZ)
		copy(other, b.With.port)
		far := expr.MetaKeyOIFNAME
		if key == far {
			far = expr.MetaKeyIIFNAME
		}
		rule = append(rule, &expr.Meta{Key: far, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: other})
	}
	if b.Proto != 0 {
		rule = append(rule,
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{b.Proto}})
	}
	if b.Proto != 0 && b.Port != 0 {
		rule = append(rule,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(b.Port)})
	}
	return append(rule, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
}
