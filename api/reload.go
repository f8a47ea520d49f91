package api

import "net/http"

// Reload is what a configuration that was read again has changed.
type Reload struct {
	Schema  int            `json:"schema"`
	Changes []ConfigChange `json:"changes"` // none: it is as it was
}

// ConfigChange is a setting that has another value.
type ConfigChange struct {
	Key  string `json:"key"` // log.level, networks[blue].mtu, networks[blue]
	From string `json:"from"`
	To   string `json:"to"` // "-": it is gone
}

func (s *Server) reload(r *http.Request) (any, error) {
	if err := s.mayChange(r); err != nil {
		return nil, err
	}
	if err := noBody(r); err != nil {
		return nil, err
	}
	res, err := s.opts.Backend.Lifecycle.Reload(r.Context())
	res.Schema, res.Changes = Schema, some(res.Changes)
	return res, err
}
