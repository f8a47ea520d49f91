package membership

import (
	"context"
	"sync"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// turns bounds how many requests of one peer are answered at once, so that a
// member that asks without end keeps itself waiting and nobody else. mu guards
// of; a turn exists only while somebody uses or waits for it.
type turns struct {
	mu sync.Mutex
	of map[ids.NodeID]*turn
}

type turn struct {
	slots chan struct{}
	users int // holding or waiting for a slot
}

// take waits for a turn of the peer. give ends it.
func (t *turns) take(ctx context.Context, id ids.NodeID) (give func(), err error) {
	t.mu.Lock()
	if t.of == nil {
		t.of = make(map[ids.NodeID]*turn)
	}
	p := t.of[id]
	if p == nil {
		p = &turn{slots: make(chan struct{}, maxServingPeer)}
		t.of[id] = p
	}
	p.users++
	t.mu.Unlock()
	select {
	case p.slots <- struct{}{}:
		return func() {
			<-p.slots
			t.leave(id, p)
		}, nil
	case <-ctx.Done():
		t.leave(id, p)
		return nil, ctx.Err()
	}
}

func (t *turns) leave(id ids.NodeID, p *turn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p.users--; p.users == 0 {
		delete(t.of, id)
	}
}
