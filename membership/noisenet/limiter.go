package noisenet

import (
	"container/list"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxSources bounds each table of buckets. An attacker with more sources than
// that gets fresh buckets and meets the node-wide limits instead.
const maxSources = 4096

// sourceOf is what limits count by: an IPv4 address, or the /64 that an IPv6
// host can usually choose addresses from.
func sourceOf(a netip.Addr) netip.Prefix {
	a = a.Unmap().WithZone("")
	bits := 32
	if a.Is6() {
		bits = 64
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// buckets is a bounded table of token buckets, one per source; the least
// recently used one makes room for a new one. mu guards all.
type buckets struct {
	rate  rate.Limit
	burst int

	mu      sync.Mutex
	entries map[netip.Prefix]*list.Element
	order   *list.List // of *bucket, most recent first
}

type bucket struct {
	source  netip.Prefix
	limiter *rate.Limiter
}

func newBuckets(perSecond float64, burst int) *buckets {
	return &buckets{rate: rate.Limit(perSecond), burst: burst,
		entries: make(map[netip.Prefix]*list.Element), order: list.New()}
}

func (b *buckets) get(source netip.Prefix) *rate.Limiter {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e, ok := b.entries[source]; ok {
		b.order.MoveToFront(e)
		return e.Value.(*bucket).limiter
	}
	if b.order.Len() >= maxSources {
		last := b.order.Back()
		b.order.Remove(last)
		delete(b.entries, last.Value.(*bucket).source)
	}
	n := &bucket{source: source, limiter: rate.NewLimiter(b.rate, b.burst)}
	b.entries[source] = b.order.PushFront(n)
	return n.limiter
}

// allow takes a token if there is one.
func (b *buckets) allow(now time.Time, source netip.Prefix) bool {
	return b.get(source).AllowN(now, 1)
}

// reserve takes a token and says how long to wait for it, or reports false and
// takes none if that is longer than most.
func (b *buckets) reserve(now time.Time, source netip.Prefix, most time.Duration) (time.Duration, bool) {
	r := b.get(source).ReserveN(now, 1)
	if !r.OK() {
		return 0, false
	}
	wait := r.DelayFrom(now)
	if wait > most {
		r.CancelAt(now)
		return 0, false
	}
	return wait, true
}

// gate bounds the connections that have not authenticated yet, in total and per
// source, so that one source cannot take all places. When all places are taken,
// the connection that has gone longest without proving that it knows a
// preshared key makes room: a member proves that with its first packet, whoever
// holds a place by sending slowly does not. mu guards all.
type gate struct {
	total, perSource int

	mu      sync.Mutex
	used    int
	from    map[netip.Prefix]int
	strange *list.List // of *place, longest first
}

// place is one connection in the gate.
type place struct {
	gate   *gate
	source netip.Prefix
	evict  func()        // closes the connection
	entry  *list.Element // in strange; nil once proven or left
	left   bool
}

func newGate(total, perSource int) *gate {
	return &gate{total: total, perSource: perSource, from: make(map[netip.Prefix]int), strange: list.New()}
}

// enter returns nil if there is no place. evict may be called at any time until
// prove or leave, from another goroutine.
func (g *gate) enter(source netip.Prefix, evict func()) *place {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.from[source] >= g.perSource {
		return nil
	}
	if g.used >= g.total {
		longest := g.strange.Front()
		if longest == nil {
			return nil
		}
		p := longest.Value.(*place)
		p.evict()
		g.remove(p)
	}
	p := &place{gate: g, source: source, evict: evict}
	p.entry = g.strange.PushBack(p)
	g.used++
	g.from[source]++
	return p
}

// prove says that the peer knows a preshared key.
func (p *place) prove() {
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	p.gate.forget(p)
}

// leave gives the place back. It may be called more than once.
func (p *place) leave() {
	p.gate.mu.Lock()
	defer p.gate.mu.Unlock()
	p.gate.remove(p)
}

func (g *gate) forget(p *place) {
	if p.entry != nil {
		g.strange.Remove(p.entry)
		p.entry = nil
	}
}

func (g *gate) remove(p *place) {
	g.forget(p)
	if p.left {
		return
	}
	p.left = true
	g.used--
	if g.from[p.source]--; g.from[p.source] == 0 {
		delete(g.from, p.source)
	}
}
