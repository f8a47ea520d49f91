package api

import (
	"net/http"
	"time"
)

// RevokeRequest throws a node out of the cluster, for good.
type RevokeRequest struct {
	Node   string `json:"node"`             // its name, its ID, or the beginning of its ID
	Reason string `json:"reason,omitempty"` // one line for people; all nodes keep it
}

// Revocation is a node that was thrown out.
type Revocation struct {
	Node    NodeRef   `json:"node"` // ID, and the name that it had
	Reason  string    `json:"reason,omitempty"`
	Created time.Time `json:"created"`
	// Applied counts the nodes that are known to have it, this one included, of
	// all that are left.
	Applied Count            `json:"applied"`
	Waiting []RevocationWait `json:"waiting"` // the others
}

// RevocationWait is a node that is not known to have a revocation yet, or not to
// know that another has left.
type RevocationWait struct {
	NodeRef
	State string `json:"state"` // of gossip: alive, indirect, suspect, dead, unknown
}

// RevocationAnswer is the answer of POST /v1/revocations.
type RevocationAnswer struct {
	Schema int `json:"schema"`
	Revocation
}

// RevocationList is the answer of GET /v1/revocations, oldest first.
type RevocationList struct {
	Schema      int          `json:"schema"`
	Revocations []Revocation `json:"revocations"`
}

func (r Revocation) complete() Revocation {
	r.Waiting = some(r.Waiting)
	return r
}

// check applies the rules that need no knowledge of the agent's state.
func (q RevokeRequest) check() error {
	if q.Node == "" {
		return NewError(CodeInvalid, "the request names no node", "secure-overlay members")
	}
	return nil
}

func (s *Server) revoke(r *http.Request) (any, error) {
	if err := s.mayChange(r); err != nil {
		return nil, err
	}
	req, err := readBody[RevokeRequest](r)
	if err != nil {
		return nil, err
	}
	if err := req.check(); err != nil {
		return nil, err
	}
	if s.opts.Backend.Revoker == nil {
		return nil, unavailable("revocation")
	}
	rev, err := s.opts.Backend.Revoker.Revoke(r.Context(), req)
	return RevocationAnswer{Schema, rev.complete()}, err
}

func (s *Server) revocations(r *http.Request) (any, error) {
	if s.opts.Backend.Revoker == nil {
		return nil, unavailable("revocation")
	}
	list, err := s.opts.Backend.Revoker.Revocations(r.Context())
	for i := range list {
		list[i] = list[i].complete()
	}
	return RevocationList{Schema: Schema, Revocations: some(list)}, err
}
