package espuser

import (
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/tunnel/internal/esp"
)

// innerAddr is an inner address as it is in a packet.
type innerAddr [addrLen]byte

// counter counts one direction of an association. One goroutine adds, others read.
type counter struct{ packets, bytes atomic.Uint64 }

func (c *counter) add(packets, bytes int) {
	c.packets.Add(uint64(packets))
	c.bytes.Add(uint64(bytes))
}

// inbound is the receiving half of a pair. What receives it is the one goroutine of its
// family's socket.
type inbound struct {
	spi    ids.SPI
	inner  innerAddr // the only source that packets of it may have inside
	is4    bool      // whose socket it is received on
	opener *esp.Opener
	*counter
}

// outbound is the sending half. The sender's goroutine uses it.
type outbound struct {
	spi    ids.SPI
	remote netip.AddrPort
	to     []byte // remote, for the kernel
	source []byte // control message: the outer source address
	sealer *esp.Sealer
	*counter
}

// pair is what a worker has of one peer.
type pair struct {
	key           keys.KeyID
	local, remote netip.AddrPort
	in            *inbound
	out           *outbound // nil: only the receiving half is there
}

// table is everything that packets are looked up in. It never changes: another takes its
// place, so that looking up needs no lock.
type table struct {
	pairs map[innerAddr]pair
	in    map[ids.SPI]*inbound
}

func newTable(pairs map[innerAddr]pair) *table {
	t := &table{pairs: pairs, in: map[ids.SPI]*inbound{}}
	for _, p := range pairs {
		t.in[p.in.spi] = p.in
	}
	return t
}

// out returns the sending half for an inner destination, or nil.
func (t *table) out(to innerAddr) *outbound { return t.pairs[to].out }

// use names a half of an association for ever: its key depends on nothing else.
type use struct {
	key  keys.KeyID
	spi  ids.SPI
	send bool
}

// builder makes tables. One goroutine uses it.
type builder struct {
	now *table
	// used are the halves that were ever installed in this process.
	used map[use]bool
}

func newBuilder() *builder { return &builder{now: newTable(nil), used: map[use]bool{}} }

// set makes the table that has what is wanted and nothing else, and tells what became of each
// peer. What is there stays, with its sequence numbers, if key, indices and outer addresses
// are the same: as in the kernel, an association that moves is another one, for which the
// pair agrees on another key.
func (b *builder) set(peers []wanted) ([]verdict, error) {
	verdicts := make([]verdict, len(peers))
	pairs, spis := map[innerAddr]pair{}, map[ids.SPI]bool{}
	for i, w := range peers {
		if spis[w.in] {
			// Packets are told apart by the index alone. The first keeps it, and the
			// other pair agrees on another.
			verdicts[i] = verdictGone
			continue
		}
		p, done, err := b.pair(w)
		if err != nil {
			return nil, err
		}
		if !done {
			verdicts[i] = verdictGone
		}
		if p.in != nil {
			pairs[w.inner.As16()], spis[w.in] = p, true
		}
	}
	b.now = newTable(pairs)
	return verdicts, nil
}

// pair makes the pair with one peer; done is false if a half is missing that was wanted.
// Without the receiving half there is no sending half: nobody is to send who cannot hear.
func (b *builder) pair(w wanted) (p pair, done bool, err error) {
	have := b.now.pairs[w.inner.As16()]
	p = pair{key: w.key, local: w.local, remote: w.remote}
	same := have.in != nil && have.key == w.key && have.in.spi == w.in && have.local.Addr() == w.local.Addr() && have.remote == w.remote
	if same {
		p.in = have.in
	} else if p.in, err = b.newInbound(w); p.in == nil {
		return pair{}, false, err
	}
	switch {
	case w.out == 0:
		return p, true, nil
	case same && have.out != nil && have.out.spi == w.out:
		p.out = have.out
	default:
		p.out, err = b.newOutbound(w)
	}
	return p, p.out != nil, err
}

// first reports whether a half may be installed. Never a second time: sequence numbers would
// begin again, so that a pair of key and nonce came twice, or what was recorded before
// was accepted once more.
func (b *builder) first(material []byte, u use) bool {
	if material == nil || b.used[u] {
		return false
	}
	b.used[u] = true
	return true
}

func (b *builder) newInbound(w wanted) (*inbound, error) {
	if !b.first(w.inMaterial, use{w.key, w.in, false}) {
		return nil, nil
	}
	o, err := esp.NewOpener(w.in, w.inMaterial)
	if err != nil {
		return nil, err
	}
	return &inbound{spi: w.in, inner: w.inner.As16(), is4: w.local.Addr().Is4(), opener: o, counter: &counter{}}, nil
}

func (b *builder) newOutbound(w wanted) (*outbound, error) {
	if !b.first(w.outMaterial, use{w.key, w.out, true}) {
		return nil, nil
	}
	s, err := esp.NewSealer(w.out, w.outMaterial)
	if err != nil {
		return nil, err
	}
	return &outbound{spi: w.out, remote: w.remote, to: rawAddr(w.remote), source: sourceMessage(w.local.Addr()), sealer: s, counter: &counter{}}, nil
}

// peers lists what there is, by inner address.
func (t *table) peers() []peer {
	var out []peer
	for _, inner := range slices.SortedFunc(maps.Keys(t.pairs), func(a, b innerAddr) int { return slices.Compare(a[:], b[:]) }) {
		p := t.pairs[inner]
		s := peer{
			inner: netip.AddrFrom16(inner), key: p.key, in: p.in.spi, local: p.local, remote: p.remote,
			rxBytes: p.in.bytes.Load(), rxPackets: p.in.packets.Load(),
		}
		if p.out != nil {
			s.out, s.txBytes, s.txPackets = p.out.spi, p.out.bytes.Load(), p.out.packets.Load()
		}
		out = append(out, s)
	}
	return out
}
