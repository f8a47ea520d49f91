package vxlan

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/logkey"
	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// Apply executes ops in order. It goes on past a failing network or endpoint
// and joins the errors, each an *Error. After a failure of a namespace, bridge
// or device the rest of that network is left for the next round.
func (p *Programmer) Apply(ctx context.Context, ops []Op) error {
	for _, r := range p.rooms {
		clear(r.index)
	}
	r := &run{p: p, badNet: make(map[string]bool), badEnd: make(map[string]bool)}
	for i := 0; i < len(ops); {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(r.errs, err)...)
		}
		if isEntry(ops[i].Kind) {
			i += r.entries(ops[i:])
			continue
		}
		if !r.skips(ops[i]) {
			r.note(ops[i], p.do(ctx, ops[i]))
		}
		i++
	}
	return errors.Join(r.errs...)
}

// run is one Apply.
type run struct {
	p      *Programmer
	errs   []error
	badNet map[string]bool
	badEnd map[string]bool // by network and name of the bridge port
}

// skips reports whether an op rests on one that has failed.
func (r *run) skips(op Op) bool {
	end := endOf(op)
	return r.badNet[op.Network] || end != "" && r.badEnd[op.Network+"/"+end]
}

// note takes what became of an op.
func (r *run) note(op Op, err error) {
	if err == nil {
		r.p.opts.Log.Debug("overlay changed", logkey.Network, op.Network, logkey.Op, op)
		return
	}
	blame := &Error{Network: op.Network, Err: fmt.Errorf("%s: %w", op.Kind, err)}
	switch end := endOf(op); {
	case end != "":
		blame.Endpoint = op.Endpoint.ID
		r.badEnd[op.Network+"/"+end] = true
	case structural(op.Kind):
		r.badNet[op.Network] = true
	}
	r.errs = append(r.errs, blame)
}

// entries does the entry ops of one network that ops begins with, many at once, and
// returns how many these are.
func (r *run) entries(ops []Op) int {
	n := 0
	for n < len(ops) && isEntry(ops[n].Kind) && ops[n].Network == ops[0].Network {
		n++
	}
	wanted := slices.DeleteFunc(slices.Clone(ops[:n]), r.skips)
	if len(wanted) == 0 {
		return n
	}
	room, err := r.p.open(ops[0].Network)
	if err != nil {
		for _, op := range wanted {
			r.note(op, err)
		}
		return n
	}
	for i, err := range room.changeEntries(wanted) {
		r.note(wanted[i], err)
	}
	return n
}

// endOf names the bridge port of the endpoint that an op is about, "" if it is
// about none.
func endOf(op Op) string {
	switch op.Kind {
	case OpAddPort, OpSetPort, OpDelPort, OpSetInner, OpAddAddr, OpDelAddr, OpAddWay, OpDelWay:
		return portName(op.Endpoint.ID)
	case OpSetStation:
		if !isDevice(op.Link) {
			return op.Link
		}
	}
	return ""
}

func structural(k OpKind) bool {
	switch k {
	case OpAddNamespace, OpTuneNamespace, OpDelNamespace, OpAddBridge, OpSetBridge, OpDelBridge,
		OpAddDevice, OpSetDevice, OpDelDevice, OpReleasePort:
		return true
	}
	return false
}

func (p *Programmer) do(ctx context.Context, op Op) error {
	switch op.Kind {
	case OpAddNamespace:
		return p.addNamespace(op.Network)
	case OpDelNamespace:
		return p.delNamespace(op.Network)
	}
	r, err := p.open(op.Network)
	if err != nil {
		return err
	}
	switch op.Kind {
	case OpTuneNamespace:
		_, err := r.ns.SetSysctls(sysctls())
		return err
	case OpAddBridge:
		return p.addBridge(r, op)
	case OpSetBridge:
		return p.setBridge(r, op)
	case OpDelBridge:
		return r.delLink(bridgeName)
	case OpAddDevice:
		return p.addDevice(r, op)
	case OpSetDevice:
		return p.setDevice(r, op)
	case OpDelDevice:
		return r.delLink(op.Link)
	case OpAddPort:
		return p.addPort(r, op)
	case OpSetPort:
		return r.setPort(portName(op.Endpoint.ID), op.MTU, p.endpointMark(op.Endpoint.ID), wantedFlags(op.Endpoint))
	case OpDelPort:
		return r.delLink(portName(op.Endpoint.ID))
	case OpReleasePort:
		return r.release(op.Link)
	case OpSetInner:
		return p.setInner(r, op)
	case OpAddAddr, OpDelAddr:
		return p.changeAddr(ctx, r, op)
	case OpAddWay, OpDelWay:
		return p.changeWay(r, op)
	}
	return fmt.Errorf("unknown operation %q", op.Kind)
}

func isEntry(k OpKind) bool {
	switch k {
	case OpAddFlood, OpDelFlood, OpSetForward, OpDelForward, OpSetStation, OpDelStation, OpSetNeighbour, OpDelNeighbour:
		return true
	}
	return false
}

// changeEntries writes and deletes forwarding and neighbour entries, in order, and
// returns what became of each. Written is with replace semantics, and what is to be
// deleted may be gone: neither a crash nor another writer can make the same op
// fail for ever.
func (r *room) changeEntries(ops []Op) []error {
	errs := make([]error, len(ops))
	var reqs []nl.Request
	var of []int // the op of each request
	for i, op := range ops {
		req, err := r.entryRequest(op)
		if err != nil {
			errs[i] = ignoreMissing(op, err)
			continue
		}
		reqs, of = append(reqs, req), append(of, i)
	}
	for k, err := range r.many.DoMany(reqs) {
		if err != nil {
			errs[of[k]] = ignoreMissing(ops[of[k]], fmt.Errorf("%s: %w", ops[of[k]].detail(), err))
		}
	}
	return errs
}

// entryRequest is the request of one op.
func (r *room) entryRequest(op Op) (nl.Request, error) {
	name := op.Link
	if op.Kind == OpSetNeighbour || op.Kind == OpDelNeighbour {
		name = bridgeName
	}
	link, err := r.link(name)
	if err != nil {
		return nl.Request{}, err
	}
	const set = unix.NLM_F_CREATE | unix.NLM_F_REPLACE
	switch op.Kind {
	case OpAddFlood:
		return entryMsg(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_APPEND, forwardMsg(link, Forward{VTEP: op.VTEP})), nil
	case OpSetForward:
		return entryMsg(unix.RTM_NEWNEIGH, set, forwardMsg(link, Forward{MAC: op.MAC, VTEP: op.VTEP})), nil
	case OpDelFlood, OpDelForward:
		return entryMsg(unix.RTM_DELNEIGH, 0, forwardMsg(link, Forward{MAC: op.MAC, VTEP: op.VTEP})), nil
	case OpSetStation:
		return entryMsg(unix.RTM_NEWNEIGH, set, stationMsg(link, op.MAC, 0)), nil
	case OpDelStation:
		return entryMsg(unix.RTM_DELNEIGH, 0, stationMsg(link, op.MAC, op.VLAN)), nil
	case OpSetNeighbour:
		return entryMsg(unix.RTM_NEWNEIGH, set, neighbourMsg(link, Neighbour{Addr: op.Addr, MAC: op.MAC})), nil
	case OpDelNeighbour:
		return entryMsg(unix.RTM_DELNEIGH, 0, neighbourMsg(link, Neighbour{Addr: op.Addr, MAC: op.MAC})), nil
	}
	return nl.Request{}, fmt.Errorf("unknown operation %q", op.Kind)
}

func ignoreMissing(op Op, err error) error {
	switch op.Kind {
	case OpDelFlood, OpDelForward, OpDelStation, OpDelNeighbour:
		if nl.IsNotExist(err) {
			return nil
		}
	}
	return err
}
