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
	// UpdateNetwork changes a network between encrypted and plaintext, and returns
	// when the nodes are told: Network.Change says how far they are.
	UpdateNetwork(ctx context.Context, name string, req NetworkUpdate) (Network, error)
	// RemoveNetwork takes a network out of the cluster. One that is in use is
	// removed only with force.
	RemoveNetwork(ctx context.Context, name string, force bool) error
}

// NetworkRequest is a network for the whole cluster.
type NetworkRequest struct {
	Name      string   `json:"name"`
	Subnets   []string `json:"subnets"`
	Plaintext bool     `json:"plaintext,omitempty"`
	Driver    string   `json:"driver,omitempty"` // auto, wireguard, userspace, ipsec or ipsec-userspace; empty: auto
	VNI       ids.VNI  `json:"vni,omitempty"`    // 0: derived from the name
	MTU       int      `json:"mtu,omitempty"`    // 0: what the underlay leaves

	// As in netdef.Options, but as the user wrote it.
	Gateways    []string `json:"gateways,omitempty"`
	Ranges      []string `json:"ip_ranges,omitempty"`
	Reserved    []string `json:"reserve,omitempty"`
	Internal    bool     `json:"internal,omitempty"`
	NoBroadcast bool     `json:"no_broadcast,omitempty"`
	Labels      []string `json:"labels,omitempty"`
}

// NetworkUpdate is what a network is to be. Only what the root has signed (Item)
// makes one plaintext.
type NetworkUpdate struct {
	Encrypted bool   `json:"encrypted,omitempty"`
	Driver    string `json:"driver,omitempty"`  // empty: as it was
	Migrate   bool   `json:"migrate,omitempty"` // have both forms, until a second update without it
	Item      []byte `json:"item,omitempty"`    // of the root key, about this network; then nothing else
}

// NetworkAnswer is the answer of POST /v1/networks and /v1/networks/{name}.
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

func (s *Server) updateNetwork(r *http.Request) (any, error) {
	if err := s.mayChange(r); err != nil {
		return nil, err
	}
	req, err := readBody[NetworkUpdate](r)
	if err != nil {
		return nil, err
	}
	if s.opts.Backend.NetworkDefiner == nil {
		return nil, unavailable("way to define networks")
	}
	if alone := len(req.Item) > 0; alone == req.Encrypted || alone && (req.Driver != "" || req.Migrate) {
		return nil, NewError(CodeInvalid, "want either encrypted: true or an item that the root has signed", "secure-overlay network update --help")
	}
	n, err := s.opts.Backend.NetworkDefiner.UpdateNetwork(r.Context(), r.PathValue("name"), req)
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
