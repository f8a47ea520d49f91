package api

import (
	"net/http"
	"time"
)

// Issuer is an issuer key: one that admits nodes, renews certificates, and signs
// what is of the whole cluster.
type Issuer struct {
	NodeRef        // the node that has it; zero if no member shows it any more
	Self    bool   `json:"self"`
	State   string `json:"state"` // of the node: alive, indirect, suspect, dead, unknown

	Key         string `json:"key"`         // so-issuer-pub: and 64 hexadecimal digits
	Fingerprint string `json:"fingerprint"` // 8 characters, for tables
	Members     int    `json:"members"`     // how many members have their certificate from it

	Revoked *IssuerRevocation `json:"revoked,omitempty"`
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

// IssuerRevocationRequest asks for what the root key has to sign for an issuer to
// be revoked.
type IssuerRevocationRequest struct {
	Issuer string `json:"issuer"`           // name or ID of its node, its fingerprint, or its key
	Reason string `json:"reason,omitempty"` // one line for people; all nodes keep it
	Undo   bool   `json:"undo,omitempty"`   // nodes that it has revoked come back
	Force  bool   `json:"force,omitempty"`  // also if no other issuer is known
}

// IssuerRevocationDraft is the answer of POST /v1/issuers/revocations/request.
type IssuerRevocationDraft struct {
	Schema  int       `json:"schema"`
	Issuer  Issuer    `json:"issuer"`
	Members []NodeRef `json:"members"` // have their certificate from it
	Request string    `json:"request"`
}

// IssuerRevocationSigned is what the root key has signed.
type IssuerRevocationSigned struct {
	Revocation string `json:"revocation"`
}

// IssuerRevocation is an issuer key that signs nothing any more.
type IssuerRevocation struct {
	Key         string    `json:"key"`
	Fingerprint string    `json:"fingerprint"`
	Reason      string    `json:"reason,omitempty"`
	Created     time.Time `json:"created"`
	Undo        bool      `json:"undo"` // its revocations of nodes are void
	// Applied counts the nodes that are known to have it, this one included.
	Applied Count            `json:"applied"`
	Waiting []RevocationWait `json:"waiting"` // the others
}

// IssuerRevocationAnswer is the answer of POST /v1/issuers/revocations.
type IssuerRevocationAnswer struct {
	Schema int `json:"schema"`
	IssuerRevocation
}

func (s *Server) requestIssuerRevocation(r *http.Request) (any, error) {
	if err := s.mayChange(r); err != nil {
		return nil, err
	}
	req, err := readBody[IssuerRevocationRequest](r)
	if err != nil {
		return nil, err
	}
	if req.Issuer == "" {
		return nil, NewError(CodeInvalid, "the request names no issuer", "secure-overlay issuer ls")
	}
	if s.opts.Backend.IssuerRevoker == nil {
		return nil, unavailable("way to revoke an issuer")
	}
	out, err := s.opts.Backend.IssuerRevoker.RequestIssuerRevocation(r.Context(), req)
	out.Schema, out.Members = Schema, some(out.Members)
	return out, err
}

func (s *Server) revokeIssuer(r *http.Request) (any, error) {
	if err := s.mayChange(r); err != nil {
		return nil, err
	}
	req, err := readBody[IssuerRevocationSigned](r)
	if err != nil {
		return nil, err
	}
	if s.opts.Backend.IssuerRevoker == nil {
		return nil, unavailable("way to revoke an issuer")
	}
	rev, err := s.opts.Backend.IssuerRevoker.RevokeIssuer(r.Context(), req)
	rev.Waiting = some(rev.Waiting)
	return IssuerRevocationAnswer{Schema, rev}, err
}

func (s *Server) issuers(r *http.Request) (any, error) {
	b, err := s.issuing()
	if err != nil {
		return nil, err
	}
	list, err := b.Issuers(r.Context())
	for _, i := range list {
		if i.Revoked != nil {
			i.Revoked.Waiting = some(i.Revoked.Waiting)
		}
	}
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
