package e2e

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// queues watches what tunnel devices throw away, mostly because nobody takes it
// from their queue: a machine that is too busy to carry the load. It tells that apart
// from what a rotation loses; it excuses nothing. Devices come and go, and their
// counters with them, so it looks often enough to see the last one: nothing is sent
// on a device in the pause before its end.
type queues struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex // guards what follows
	dropped map[string]map[int]drops
}

// drops are what a link counts as dropped on its way out and in, and as errors
// on its way out and in.
type drops [4]uint64

// queueLook is the pause between looks: well below how long an old device stays
// silent before it ends (see keysConfig).
func queueLook() time.Duration {
	if emulated() {
		return 500 * time.Millisecond
	}
	return 50 * time.Millisecond
}

// watchQueues looks at the tunnel devices of some secure namespaces until stop.
func watchQueues(ctx context.Context, secure map[string]*nl.Namespace) *queues {
	ctx, cancel := context.WithCancel(ctx)
	q := &queues{cancel: cancel, dropped: map[string]map[int]drops{}}
	for name := range secure {
		q.dropped[name] = map[int]drops{}
	}
	for name, ns := range secure {
		q.wg.Go(func() { q.watch(ctx, name, ns) })
	}
	return q
}

func (q *queues) watch(ctx context.Context, name string, ns *nl.Namespace) {
	h, err := ns.Handle()
	if err != nil {
		return
	}
	defer h.Close()
	tick := time.NewTicker(queueLook())
	defer tick.Stop()
	for ctx.Err() == nil {
		links, _ := h.LinkList() // an error now is an answer at the next look
		q.mu.Lock()
		for _, l := range links {
			if s := l.Attrs().Statistics; s != nil {
				q.dropped[name][l.Attrs().Index] = drops{s.TxDropped, s.RxDropped, s.TxErrors, s.RxErrors}
			}
		}
		q.mu.Unlock()
		<-tick.C
	}
}

// stop ends the watch and says for people what was dropped where.
func (q *queues) stop() string {
	q.cancel()
	q.wg.Wait()
	text := ""
	for name, devices := range q.dropped {
		var sum drops
		for _, d := range devices {
			for i, n := range d {
				sum[i] += n
			}
		}
		if sum != (drops{}) {
			text += fmt.Sprintf(" %s (tx %d, rx %d; errors tx %d, rx %d)", name, sum[0], sum[1], sum[2], sum[3])
		}
	}
	if text == "" {
		return " none"
	}
	return text
}

// softnetDrops is how many packets the kernel has thrown away since it booted
// because a processor's backlog was full: the second column of
// /proc/net/softnet_stat, hexadecimal, one line per processor.
func softnetDrops() (sum uint64) {
	raw, _ := os.ReadFile("/proc/net/softnet_stat") // only for people
	for line := range strings.Lines(string(raw)) {
		if f := strings.Fields(line); len(f) > 1 {
			n, _ := strconv.ParseUint(f[1], 16, 64)
			sum += n
		}
	}
	return sum
}
