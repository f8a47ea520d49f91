package api

import (
	"context"
	"net/http"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// NetworkDefiner gives the cluster networks, on nodes that hold an issuer key.
type NetworkDefiner interface {
	// CreateNetwork returns when this node knows the network and has begun to
	// tell the others. Nothing carries it until something is attached to it.
	CreateNetwork(ctx context.Context, req NetworkRequest) (Network, error)
	// RemoveNetwork takes a network out of the cluster. One that is in use is
	// removed only with force.
	RemoveNetwork(ctx context.Context, name string, force bool) error
}

// NetworkRequest is a network for the whole cluster.
type NetworkRequest struct {
	Name      string   `json:"name"`
	Subnets   []string `json:"subnets"`
	Plaintext bool     `json:"plaintext,omitempty"`
	Driver    string   `json:"driver,omitempty"` // auto, wireguard, userspace or ipsec; empty: auto
	VNI       ids.VNI  `json:"vni,omitempty"`    // 0: derived from the name
	MTU       int      `json:"mtu,omitempty"`    // 0: what the underlay leaves
}

// NetworkAnswer is the answer of POST /v1/networks.
type NetworkAnswer struct {
	Schema int `json:"schema"`
	Network
}

func (s *Server) createNetwork(r *http.Request) (any, error) {
	if err := s.mayChange(r); err != nil {
		return nil, err
	}
	req, err := readBody[NetworkRequest](r)
	if err != nil {
		return nil, err
	}
	if s.opts.Backend.NetworkDefiner == nil {
		return nil, unavailable("way to define networks")
	}
	n, err := s.opts.Backend.NetworkDefiner.CreateNetwork(r.Context(), req)
	return NetworkAnswer{Schema, n}, err
}

func (s *Server) removeNetwork(r *http.Request) (any, error) {
	if err := s.mayChange(r); err != nil {
		return nil, err
	}
	if err := noBody(r); err != nil {
		return nil, err
	}
	if s.opts.Backend.NetworkDefiner == nil {
		return nil, unavailable("way to define networks")
	}
	force := r.URL.Query().Get("force") == "true"
	return Done{Schema: Schema, Done: true}, s.opts.Backend.NetworkDefiner.RemoveNetwork(r.Context(), r.PathValue("name"), force)
}
