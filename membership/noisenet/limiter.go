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

// gate counts the connections that have not authenticated yet, in total and
// per source, so that one source cannot take all places. mu guards all.
type gate struct {
	total, perSource int

	mu   sync.Mutex
	used int
	from map[netip.Prefix]int
}

func newGate(total, perSource int) *gate {
	return &gate{total: total, perSource: perSource, from: make(map[netip.Prefix]int)}
}

func (g *gate) enter(source netip.Prefix) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.used >= g.total || g.from[source] >= g.perSource {
		return false
	}
	g.used++
	g.from[source]++
	return true
}

func (g *gate) leave(source netip.Prefix) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.used--
	if g.from[source]--; g.from[source] == 0 {
		delete(g.from, source)
	}
}
