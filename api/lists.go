package api

// MemberList is the answer of GET /v1/members, sorted by name.
type MemberList struct {
	Schema  int      `json:"schema"`
	Members []Member `json:"members"`
}

// NetworkList is the answer of GET /v1/networks, in the order of the file.
type NetworkList struct {
	Schema   int       `json:"schema"`
	Networks []Network `json:"networks"`
}

// EndpointList is the answer of GET /v1/endpoints.
type EndpointList struct {
	Schema    int        `json:"schema"`
	Endpoints []Endpoint `json:"endpoints"`
}

// EndpointAnswer is the answer of POST /v1/endpoints.
type EndpointAnswer struct {
	Schema int `json:"schema"`
	Endpoint
}

// TokenList is the answer of GET /v1/tokens. It holds no secrets.
type TokenList struct {
	Schema int     `json:"schema"`
	Tokens []Token `json:"tokens"`
}

// JoinDecided is the answer of POST /v1/tokens/{id}/decision.
type JoinDecided struct {
	Schema   int     `json:"schema"`
	Node     NodeRef `json:"node"`
	Approved bool    `json:"approved"`
}

// NetworkDetail is what `network inspect` prints: a network with its
// endpoints on all nodes and the peers that share it.
type NetworkDetail struct {
	Schema int `json:"schema"`
	Network
	Endpoints []Endpoint `json:"endpoints"`
	PeerList  []Peer     `json:"peer_list"`
}

// Done is the answer of a call that has nothing else to say.
type Done struct {
	Schema int  `json:"schema"`
	Done   bool `json:"done"`
}

// failure is the body of an answer that reports an error.
type failure struct {
	Schema int    `json:"schema"`
	Error  *Error `json:"error"`
}

// some turns a nil slice into an empty one: programs get [], never null.
func some[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// complete fills what every status has.
func (s *Status) complete() {
	s.Schema = Schema
	s.Networks, s.Peers, s.Problems = some(s.Networks), some(s.Peers), some(s.Problems)
	s.Warnings = some(s.Warnings)
	for i := range s.Networks {
		s.Networks[i].Subnets = some(s.Networks[i].Subnets)
	}
}
