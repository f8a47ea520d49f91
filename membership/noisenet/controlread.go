package noisenet

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/time/rate"
)

// controlReader is the state of the reading side of a control stream. Only
// control.run uses it.
type controlReader struct {
	c        *control
	ctx      context.Context
	message  assembler
	request  uint32            // number of the peer's last REQUEST
	open     uint32            // and of its last OPEN
	opens    *rate.Limiter     // OPENs a peer may send
	answered map[uint32]uint32 // OPEN number to local index, until CONFIRM
}

// handle takes one frame. An error ends the stream.
func (r *controlReader) handle(f controlFrame) error {
	switch f.kind {
	case controlRequest:
		return r.handleRequest(f)
	case controlResponse, controlFailure:
		return r.handleAnswer(f)
	case controlOpen:
		return r.handleOpen(f)
	case controlOpened:
		return r.handleOpened(f)
	case controlConfirm:
		return r.handleConfirm(f)
	}
	return fmt.Errorf("handle control frame of kind %d: %w", f.kind, errControl)
}

func (r *controlReader) handleRequest(f controlFrame) error {
	if !r.message.open && f.id <= r.request {
		return fmt.Errorf("handle request %d after %d: %w", f.id, r.request, errControl)
	}
	req, complete, err := r.message.add(f)
	if err != nil || !complete {
		return err
	}
	r.request = f.id
	if !r.begin() {
		return fmt.Errorf("handle request %d: more than %d at work: %w", f.id, maxRunning, errControl)
	}
	id := f.id
	if !r.c.t.spawn(func() { r.serve(id, req) }) {
		return ErrClosed
	}
	return nil
}

func (r *controlReader) begin() bool {
	c := r.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.running >= maxRunning {
		return false
	}
	c.running++
	return true
}

// serve runs the Handler and sends its answer, in a goroutine of its own.
func (r *controlReader) serve(id uint32, req []byte) {
	c := r.c
	kind, data := uint8(controlResponse), []byte(nil)
	resp, err := c.t.handle(r.ctx, c.conn.peer, req)
	if err == nil && len(resp) > MaxMessage {
		err = fmt.Errorf("response has %d bytes: %w", len(resp), ErrTooLarge)
	}
	if data = resp; err != nil {
		kind, data = controlFailure, []byte(err.Error())
		data = data[:min(len(data), maxFailure)]
	}
	c.sendMu.Lock()
	err = c.sendMessage(kind, id, data)
	c.sendMu.Unlock()
	c.mu.Lock()
	c.running--
	c.mu.Unlock()
	if err != nil {
		c.close()
	}
}

func (r *controlReader) handleAnswer(f controlFrame) error {
	c := r.c
	c.mu.Lock()
	ch, known := c.calls[f.id]
	c.mu.Unlock()
	if !known {
		return fmt.Errorf("handle answer to request %d, which is not open: %w", f.id, errControl)
	}
	data, complete, err := r.message.add(f)
	if err != nil || !complete {
		return err
	}
	c.mu.Lock()
	delete(c.calls, f.id)
	c.mu.Unlock()
	<-c.slots
	if f.kind == controlFailure {
		ch <- answer{err: &RemoteError{Text: string(data)}}
	} else {
		ch <- answer{data: data}
	}
	return nil
}

// handleOpen answers a peer's OPEN with a session of its own index.
func (r *controlReader) handleOpen(f controlFrame) error {
	if f.id <= r.open || len(r.answered) >= maxOpens || !r.opens.AllowN(time.Now(), 1) {
		return fmt.Errorf("handle OPEN %d after %d: %w", f.id, r.open, errControl)
	}
	r.open = f.id
	local, err := r.c.t.answerOpen(r.c.conn, f)
	if err != nil {
		return err
	}
	r.answered[f.id] = local
	return r.c.reply(controlFrame{kind: controlOpened, id: f.id, index: local})
}

func (r *controlReader) handleOpened(f controlFrame) error {
	c := r.c
	c.mu.Lock()
	p, known := c.opens[f.id]
	delete(c.opens, f.id)
	c.mu.Unlock()
	if !known {
		return fmt.Errorf("handle OPENED %d, which is not open: %w", f.id, errControl)
	}
	installed, err := c.t.finishOpen(c.conn, p.index, f)
	p.done <- err
	if err != nil || !installed {
		return err
	}
	return c.reply(controlFrame{kind: controlConfirm, id: f.id})
}

func (r *controlReader) handleConfirm(f controlFrame) error {
	local, known := r.answered[f.id]
	if !known {
		return fmt.Errorf("handle CONFIRM %d, which was not answered: %w", f.id, errControl)
	}
	delete(r.answered, f.id)
	r.c.t.confirmOpen(r.c.conn.peer.ID, local)
	return nil
}
