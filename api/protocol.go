package api

import (
	"net/http"
	"time"
)

// Protocol is which versions of the protocol nodes speak with each other.
type Protocol struct {
	Min        uint8     `json:"min"`            // that this program speaks
	Max        uint8     `json:"max"`            // that this program speaks
	Floor      uint8     `json:"floor"`          // the lowest that the cluster allows
	Generation uint32    `json:"generation"`     // how often the root key has set the floor
	Since      time.Time `json:"since,omitzero"` // zero: nobody has set it
}

// ProtocolAnswer is the answer of GET /v1/protocol and POST /v1/protocol/floor.
type ProtocolAnswer struct {
	Schema int `json:"schema"`
	Protocol
}

// FloorRequest changes the lowest version that the cluster allows. Exactly one
// of Raise and Item is set.
type FloorRequest struct {
	Raise uint8  `json:"raise,omitempty"` // by this node's issuer
	Force bool   `json:"force,omitempty"` // also if that shuts nodes out
	Item  []byte `json:"item,omitempty"`  // a floor that the root key has signed
}

// check applies the rules that need no knowledge of the agent's state.
func (q FloorRequest) check() error {
	if (q.Raise == 0) == (len(q.Item) == 0) {
		return NewError(CodeInvalid, "the request names a version to raise the floor to, or a floor that the root key has signed", "secure-overlay protocol floor --raise N")
	}
	return nil
}

func (s *Server) protocol(r *http.Request) (any, error) {
	if s.opts.Backend.Protocols == nil {
		return nil, unavailable("protocol floor")
	}
	p, err := s.opts.Backend.Protocols.Protocol(r.Context())
	return ProtocolAnswer{Schema, p}, err
}

func (s *Server) setFloor(r *http.Request) (any, error) {
	if err := s.mayChange(r); err != nil {
		return nil, err
	}
	req, err := readBody[FloorRequest](r)
	if err != nil {
		return nil, err
	}
	if err := req.check(); err != nil {
		return nil, err
	}
	if s.opts.Backend.Protocols == nil {
		return nil, unavailable("protocol floor")
	}
	p, err := s.opts.Backend.Protocols.SetFloor(r.Context(), req)
	return ProtocolAnswer{Schema, p}, err
}
