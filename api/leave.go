package api

import (
	"net/http"
	"time"
)

// LeaveRequest takes this node out of the cluster, for good.
type LeaveRequest struct {
	// Force: also if the node holds the only issuer key of the cluster.
	Force bool `json:"force,omitempty"`
}

// Departure is how far a node is that leaves the cluster.
type Departure struct {
	Node NodeRef   `json:"node"` // this one
	Left time.Time `json:"left,omitzero"`
	// Told counts the other nodes that are known to know it, of all.
	Told    Count            `json:"told"`
	Waiting []RevocationWait `json:"waiting"` // the others
}

// DepartureAnswer is the answer of GET and POST /v1/leave.
type DepartureAnswer struct {
	Schema int `json:"schema"`
	Departure
}

// LeaveResult is the answer of POST /v1/leave/finish. The files of the
// membership go when the agent ends, right after it.
type LeaveResult struct {
	Schema int `json:"schema"`
	Departure
	Removed []string `json:"removed"`  // one line per kernel object or process, as of down
	DataDir string   `json:"data_dir"` // where the node's keys were
}

func (d Departure) complete() Departure {
	d.Waiting = some(d.Waiting)
	return d
}

func (s *Server) leave(r *http.Request) (any, error) {
	if err := s.mayChange(r); err != nil {
		return nil, err
	}
	req, err := readBody[LeaveRequest](r)
	if err != nil {
		return nil, err
	}
	b, err := s.leaver()
	if err != nil {
		return nil, err
	}
	d, err := b.Leave(r.Context(), req)
	return DepartureAnswer{Schema, d.complete()}, err
}

func (s *Server) departure(r *http.Request) (any, error) {
	b, err := s.leaver()
	if err != nil {
		return nil, err
	}
	d, err := b.Departure(r.Context())
	return DepartureAnswer{Schema, d.complete()}, err
}

func (s *Server) finishLeave(r *http.Request) (any, error) {
	if err := s.mayChange(r); err != nil {
		return nil, err
	}
	if err := noBody(r); err != nil {
		return nil, err
	}
	b, err := s.leaver()
	if err != nil {
		return nil, err
	}
	res, err := b.FinishLeave(r.Context())
	res.Schema, res.Departure, res.Removed = Schema, res.complete(), some(res.Removed)
	return res, err
}

func (s *Server) leaver() (Leaver, error) {
	if s.opts.Backend.Leaver == nil {
		return nil, unavailable("way to leave the cluster")
	}
	return s.opts.Backend.Leaver, nil
}
