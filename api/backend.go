package api

import "context"

// Observer answers what is. Its methods change nothing.
type Observer interface {
	Status(ctx context.Context) (Status, error)
	Members(ctx context.Context) ([]Member, error)
	Networks(ctx context.Context) ([]Network, error)
	Endpoints(ctx context.Context) ([]Endpoint, error)
}

// Attacher plugs network namespaces into networks.
type Attacher interface {
	// Attach returns when the endpoint works on this node. The same request
	// repeated returns the same endpoint.
	Attach(ctx context.Context, req AttachRequest) (Endpoint, error)
	// Detach removes an endpoint by its ID or unambiguous prefix of it.
	Detach(ctx context.Context, id string) error
}

// Tokens manages join tokens, on nodes that hold an issuer key.
type Tokens interface {
	CreateToken(ctx context.Context, req TokenRequest) (NewToken, error)
	Tokens(ctx context.Context) ([]Token, error)
	RevokeToken(ctx context.Context, id string) error
	// DecideJoin approves or denies the join of a node that waits at a token,
	// and returns the node.
	DecideJoin(ctx context.Context, id string, d JoinDecision) (NodeRef, error)
}

// Keys tells about key epochs and starts new ones.
type Keys interface {
	Keys(ctx context.Context) (KeyStatus, error)
	// Rotate asks for a new epoch in the whole cluster and returns when the
	// request is signed and on its way, not when nodes have followed it.
	Rotate(ctx context.Context, req RotateRequest) (Rotation, error)
	// KeyHistory lists what happened to keys, oldest first.
	KeyHistory(ctx context.Context) ([]KeyEvent, error)
}

// Revoker throws nodes out of the cluster.
type Revoker interface {
	// Revoke returns when this node has applied it and has begun to tell the
	// others. A node that is revoked already stays so.
	Revoke(ctx context.Context, req RevokeRequest) (Revocation, error)
	// Revocations lists the nodes that were thrown out, oldest first.
	Revocations(ctx context.Context) ([]Revocation, error)
}

// Leaver takes this node out of the cluster, for good.
type Leaver interface {
	// Leave returns when the node has left, on its disk first, and has begun to
	// tell the others. Repeating it changes nothing.
	Leave(ctx context.Context, req LeaveRequest) (Departure, error)
	// Departure tells who knows it. The error is CodeRefused for a member.
	Departure(ctx context.Context) (Departure, error)
	// FinishLeave removes everything the agent made and returns; the agent's Run
	// then ends, and the node's keys and state are removed from the disk.
	FinishLeave(ctx context.Context) (LeaveResult, error)
}

// Issuing makes a node an issuer.
type Issuing interface {
	Issuers(ctx context.Context) ([]Issuer, error)
	// RequestIssuer makes this node's issuer key, if it has none, and the
	// request for the holder of the root key. Repeating it gives the same.
	RequestIssuer(ctx context.Context) (IssuerRequest, error)
	InstallIssuer(ctx context.Context, req IssuerInstall) (IssuerInstalled, error)
}

// IssuerRevoker takes an issuer's place away, on the word of the root key.
type IssuerRevoker interface {
	// RequestIssuerRevocation returns what the holder of the root key has to
	// sign. It changes nothing.
	RequestIssuerRevocation(ctx context.Context, req IssuerRevocationRequest) (IssuerRevocationDraft, error)
	// RevokeIssuer returns when this node has applied what the root key has
	// signed, and has begun to tell the others.
	RevokeIssuer(ctx context.Context, req IssuerRevocationSigned) (IssuerRevocation, error)
}

// Protocols tells which protocol versions are spoken, and limits them.
type Protocols interface {
	Protocol(ctx context.Context) (Protocol, error)
	// SetFloor returns when this node has applied the new floor and has begun to
	// tell the others.
	SetFloor(ctx context.Context, req FloorRequest) (Protocol, error)
}

// Events tells what happened on this node. LogEvents is the usual one.
type Events interface {
	// Events lists events, oldest first.
	Events(ctx context.Context, q EventQuery) ([]Event, error)
}

// Lifecycle changes and ends the agent.
type Lifecycle interface {
	// Reload reads the configuration again and takes up what has changed, or
	// refuses all of it.
	Reload(ctx context.Context) (Reload, error)
	// Down removes everything the agent made and returns; the agent's Run
	// then ends. The server finishes the answer before it stops.
	Down(ctx context.Context, req DownRequest) (DownResult, error)
}

// Backend is what a Server serves. All are required but Keys, Revoker, Leaver,
// Issuing, IssuerRevoker, NetworkDefiner, Protocols and Events: without them the server answers that the agent cannot do
// that.
type Backend struct {
	Observer  Observer
	Attacher  Attacher
	Tokens    Tokens
	Lifecycle Lifecycle
	Keys      Keys
	Revoker   Revoker
	Leaver    Leaver
	Issuing   Issuing
	Protocols Protocols
	Events    Events

	IssuerRevoker  IssuerRevoker
	NetworkDefiner NetworkDefiner
}
