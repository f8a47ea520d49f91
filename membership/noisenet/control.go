package noisenet

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// openTimeout is how long a peer may take to answer an OPEN.
const openTimeout = 5 * time.Second

// errBroken marks errors of a stream, after which a fresh one may do better.
var errBroken = errors.New("control stream broke")

// control is one control stream with a peer. Both sides send requests on it.
//
// Goroutines: run reads; writeReplies sends what run must answer, so that run
// never waits for the peer to read; each request from the peer has one; callers
// bring their own. sendMu is held for a whole message, openMu for one OPEN; mu
// guards the fields below it and is the innermost lock.
type control struct {
	t       *Transport
	conn    *secureConn
	dialled bool
	replies chan controlFrame
	done    chan struct{} // closed when run has ended
	slots   chan struct{} // taken by a call until its answer came

	sendMu sync.Mutex
	openMu sync.Mutex

	mu       sync.Mutex
	lastCall uint32 // number of the last REQUEST sent
	lastOpen uint32 // and of the last OPEN
	calls    map[uint32]chan<- answer
	opens    map[uint32]pendingOpen
	running  int       // requests of the peer at work
	waiting  int       // own callers
	lastUse  time.Time // last frame in either direction
	lastRecv time.Time
}

type answer struct {
	data []byte
	err  error
}

type pendingOpen struct {
	index uint32
	done  chan<- error
}

func newControl(t *Transport, conn *secureConn, dialled bool) *control {
	now := time.Now()
	return &control{t: t, conn: conn, dialled: dialled,
		replies: make(chan controlFrame, 2*maxOpens),
		done:    make(chan struct{}),
		slots:   make(chan struct{}, maxInFlight),
		calls:   make(map[uint32]chan<- answer),
		opens:   make(map[uint32]pendingOpen),
		lastUse: now, lastRecv: now}
}

func (c *control) hello() error {
	return c.conn.writeFrame(channelControl, controlFrame{kind: controlHello}.encode(nil), true)
}

// isHello checks the first frame of a control stream.
func isHello(channel uint8, data []byte) error {
	if channel != channelControl {
		return fmt.Errorf("read first control frame: it is of channel %d: %w", channel, errControl)
	}
	f, err := parseControl(data)
	if err != nil {
		return err
	}
	if f.kind != controlHello {
		return fmt.Errorf("read first control frame: kind %d: %w", f.kind, errControl)
	}
	return nil
}

// call sends one request and waits for its answer. errBroken is in the error
// if the stream broke before the answer came.
func (c *control) call(ctx context.Context, req []byte) ([]byte, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	select {
	case c.slots <- struct{}{}:
	case <-c.done:
		return nil, errBroken
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	c.wait(1)
	defer c.wait(-1)
	ch := make(chan answer, 1)
	began := time.Now()
	// A peer that reads slowly could hold the caller for the time of a frame
	// times the number of frames. When ctx ends first, so does the stream,
	// because part of the message may have left.
	sent := context.AfterFunc(ctx, c.close)
	err := c.sendRequest(ch, req)
	if !sent() {
		return nil, ctx.Err()
	}
	if err != nil {
		c.close()
		return nil, fmt.Errorf("%w: %w", errBroken, err)
	}
	select {
	case a := <-ch:
		return a.data, a.err
	case <-c.done:
		// The answer may have come just before the end.
		select {
		case a := <-ch:
			return a.data, a.err
		default:
		}
		return nil, errBroken
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) && c.silentSince(began) {
			// Not one frame since the request: the peer has probably gone
			// without a word, and the next call should not wait for it too.
			c.close()
		}
		return nil, ctx.Err()
	}
}

func (c *control) wait(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting += n
}

func (c *control) silentSince(t time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastRecv.Before(t)
}

func (c *control) sendRequest(ch chan<- answer, req []byte) error {
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	c.mu.Lock()
	c.lastCall++
	id := c.lastCall
	c.calls[id] = ch
	c.mu.Unlock()
	if id == 0 {
		return fmt.Errorf("number request: %w", errControl) // 2^32 requests on one stream
	}
	return c.sendMessage(controlRequest, id, req)
}

// sendMessage writes the frames of one message; sendMu is held.
func (c *control) sendMessage(kind uint8, id uint32, data []byte) error {
	for {
		n := min(len(data), maxChunk)
		if err := c.send(controlFrame{kind: kind, id: id, last: n == len(data), data: data[:n]}); err != nil {
			return err
		}
		data = data[n:]
		if len(data) == 0 {
			return nil
		}
	}
}

func (c *control) send(f controlFrame) error {
	buf := make([]byte, 0, controlHead+4+len(f.data))
	if err := c.conn.writeFrame(channelControl, f.encode(buf), true); err != nil {
		return err
	}
	c.touch(false)
	return nil
}

func (c *control) touch(received bool) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastUse = now
	if received {
		c.lastRecv = now
	}
}

// openDatagrams asks the peer for a datagram session and waits until it is in
// service.
func (c *control) openDatagrams(ctx context.Context) error {
	index, err := c.t.reserveIndex()
	if err != nil {
		return err
	}
	defer c.t.releaseIndex(index)
	done := make(chan error, 1)
	if err := c.sendOpen(index, done); err != nil {
		c.close()
		return fmt.Errorf("%w: %w", errBroken, err)
	}
	timeout := time.NewTimer(openTimeout)
	defer timeout.Stop()
	select {
	case err := <-done:
		return err
	case <-c.done:
		return errBroken
	case <-timeout.C:
		c.close()
		return fmt.Errorf("open datagram session with %s: no answer: %w", c.conn.peer.ID, errBroken)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *control) sendOpen(index uint32, done chan<- error) error {
	c.openMu.Lock()
	defer c.openMu.Unlock()
	c.mu.Lock()
	c.lastOpen++
	id, full := c.lastOpen, len(c.opens) >= maxOpens
	if !full {
		c.opens[id] = pendingOpen{index, done}
	}
	c.mu.Unlock()
	if full || id == 0 {
		return fmt.Errorf("open datagram session: too many on this stream: %w", errControl)
	}
	return c.send(controlFrame{kind: controlOpen, id: id, index: index})
}

// idle reports that nobody has used the stream for d and nobody waits on it.
func (c *control) idle(now time.Time, d time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running == 0 && c.waiting == 0 && now.Sub(c.lastUse) >= d
}

func (c *control) close() { c.conn.close() }

func (c *control) alive() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// run reads until the stream ends. It returns nil if the peer or this node
// closed it in an orderly way.
func (c *control) run() error {
	ctx, cancel := context.WithCancel(c.t.ctx)
	defer cancel()
	defer close(c.done)
	defer c.close()
	if !c.t.spawn(func() { c.writeReplies(ctx) }) {
		return nil
	}
	r := controlReader{c: c, ctx: ctx, opens: rate.NewLimiter(1, 2*maxOpens),
		answered: make(map[uint32]uint32)}
	for {
		channel, data, err := c.conn.readFrame()
		if err != nil {
			return err
		}
		if channel != channelControl {
			return errControl
		}
		c.touch(true)
		f, err := parseControl(data)
		if err != nil {
			return err
		}
		if err := r.handle(f); err != nil {
			return err
		}
	}
}

func (c *control) writeReplies(ctx context.Context) {
	for {
		select {
		case f := <-c.replies:
			if c.send(f) != nil {
				c.close()
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// reply queues a frame without waiting. A peer that lets the queue fill up is
// not reading.
func (c *control) reply(f controlFrame) error {
	select {
	case c.replies <- f:
		return nil
	default:
		return fmt.Errorf("answer control frame: peer does not read: %w", errControl)
	}
}
