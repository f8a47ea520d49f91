package api

import (
	"net/http"
	"time"
)

// Issuer is a node that has an issuer key: one that admits nodes, renews
// certificates, and signs what is of the whole cluster.
type Issuer struct {
	NodeRef
	Self  bool   `json:"self"`
	State string `json:"state"` // of gossip: alive, suspect, dead, unknown
}

// IssuerList is the answer of GET /v1/issuers, by name.
type IssuerList struct {
	Schema  int      `json:"schema"`
	Issuers []Issuer `json:"issuers"`
}

// IssuerRequest is the answer of POST /v1/issuers/request: what the holder of
// the root key has to sign before this node is an issuer.
type IssuerRequest struct {
	Schema  int     `json:"schema"`
	Node    NodeRef `json:"node"`
	Request string  `json:"request"`
}

// IssuerInstall gives this node the root's delegation.
type IssuerInstall struct {
	Delegation string `json:"delegation"`
}

// IssuerInstalled is the answer of POST /v1/issuers/install. The issuer works
// from the next start of the agent on.
type IssuerInstalled struct {
	Schema  int       `json:"schema"`
	Node    NodeRef   `json:"node"`
	Expires time.Time `json:"expires"` // end of the delegation
}

func (s *Server) issuers(r *http.Request) (any, error) {
	b, err := s.issuing()
	if err != nil {
		return nil, err
	}
	list, err := b.Issuers(r.Context())
	return IssuerList{Schema: Schema, Issuers: some(list)}, err
}

func (s *Server) requestIssuer(r *http.Request) (any, error) {
	if err := s.mayChange(r); err != nil {
		return nil, err
	}
	if err := noBody(r); err != nil {
		return nil, err
	}
	b, err := s.issuing()
	if err != nil {
		return nil, err
	}
	req, err := b.RequestIssuer(r.Context())
	req.Schema = Schema
	return req, err
}

func (s *Server) installIssuer(r *http.Request) (any, error) {
	if err := s.mayChange(r); err != nil {
		return nil, err
	}
	req, err := readBody[IssuerInstall](r)
	if err != nil {
		return nil, err
	}
	b, err := s.issuing()
	if err != nil {
		return nil, err
	}
	done, err := b.InstallIssuer(r.Context(), req)
	done.Schema = Schema
	return done, err
}

func (s *Server) issuing() (Issuing, error) {
	if s.opts.Backend.Issuing == nil {
		return nil, unavailable("way to become an issuer")
	}
	return s.opts.Backend.Issuing, nil
}
