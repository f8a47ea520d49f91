package vxlan

import (
	"context"
	"errors"
	"fmt"

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
	var errs []error
	badNet := make(map[string]bool)
	badEnd := make(map[string]bool) // by name of the bridge port
	for _, op := range ops {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(errs, err)...)
		}
		end := endOf(op)
		if badNet[op.Network] || end != "" && badEnd[op.Network+"/"+end] {
			continue
		}
		err := p.do(ctx, op)
		if err == nil {
			p.opts.Log.Debug("overlay changed", logkey.Network, op.Network, logkey.Op, op.String())
			continue
		}
		blame := &Error{Network: op.Network, Err: fmt.Errorf("%s: %w", op.Kind, err)}
		switch {
		case end != "":
			blame.Endpoint = op.Endpoint.ID
			badEnd[op.Network+"/"+end] = true
		case structural(op.Kind):
			badNet[op.Network] = true
		}
		errs = append(errs, blame)
	}
	return errors.Join(errs...)
}

// endOf names the bridge port of the endpoint that an op is about, "" if it is
// about none.
func endOf(op Op) string {
	switch op.Kind {
	case OpAddPort, OpSetPort, OpDelPort, OpSetInner, OpAddAddr, OpDelAddr:
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
		return r.setPort(portName(op.Endpoint.ID), op.MTU, p.endpointMark(op.Endpoint.ID), wantedFlags())
	case OpDelPort:
		return r.delLink(portName(op.Endpoint.ID))
	case OpReleasePort:
		return r.release(op.Link)
	case OpSetInner:
		return p.setInner(r, op)
	case OpAddAddr, OpDelAddr:
		return p.changeAddr(ctx, r, op)
	default:
		return r.changeEntry(op)
	}
}

// changeEntry writes or deletes one forwarding or neighbour entry. Written is
// with replace semantics, and what is to be deleted may be gone: neither a
// crash nor another writer can make the same op fail for ever.
func (r *room) changeEntry(op Op) error {
	name := op.Link
	if op.Kind == OpSetNeighbour || op.Kind == OpDelNeighbour {
		name = bridgeName
	}
	link, err := r.link(name)
	if err != nil {
		return ignoreMissing(op, err)
	}
	switch op.Kind {
	case OpAddFlood:
		err = r.h.NeighAppend(forwardMsg(link, Forward{VTEP: op.VTEP}))
	case OpSetForward:
		err = r.h.NeighSet(forwardMsg(link, Forward{MAC: op.MAC, VTEP: op.VTEP}))
	case OpDelFlood, OpDelForward:
		err = r.h.NeighDel(forwardMsg(link, Forward{MAC: op.MAC, VTEP: op.VTEP}))
	case OpSetStation:
		err = r.h.NeighSet(stationMsg(link, op.MAC, 0))
	case OpDelStation:
		err = r.h.NeighDel(stationMsg(link, op.MAC, op.VLAN))
	case OpSetNeighbour:
		err = r.h.NeighSet(neighbourMsg(link, Neighbour{Addr: op.Addr, MAC: op.MAC}))
	case OpDelNeighbour:
		err = r.h.NeighDel(neighbourMsg(link, Neighbour{Addr: op.Addr, MAC: op.MAC}))
	default:
		err = fmt.Errorf("unknown operation %q", op.Kind)
	}
	if err != nil {
		err = fmt.Errorf("%s: %w", op.detail(), err)
	}
	return ignoreMissing(op, err)
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
