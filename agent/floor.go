package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// floors sets the lowest protocol version of the cluster; *membership.Cluster.
type floors interface {
	RaiseFloor(ctx context.Context, least uint8) (item.Floor, error)
	SetFloor(raw []byte) (item.Floor, error)
}

func protocolOf(f item.Floor) api.Protocol {
	return api.Protocol{Min: noisenet.VersionMin, Max: noisenet.VersionMax, Floor: f.Min, Generation: f.Generation, Since: f.Created}
}

// Protocol implements api.Protocols.
func (a *Agent) Protocol(ctx context.Context) (api.Protocol, error) {
	var out api.Protocol
	err := a.do(ctx, func(_ context.Context, l *loop) { out = protocolOf(l.gossip.Snapshot().Floor) })
	return out, err
}

// SetFloor implements api.Protocols.
func (a *Agent) SetFloor(ctx context.Context, req api.FloorRequest) (api.Protocol, error) {
	var set floors
	var snap membership.Snapshot
	issuers := ""
	if err := a.do(ctx, func(_ context.Context, l *loop) { set, snap, issuers = l.floors, l.gossip.Snapshot(), l.issuerNames() }); err != nil {
		return api.Protocol{}, err
	}
	var f item.Floor
	var err error
	switch old := below(snap, req.Raise); {
	case len(req.Item) > 0:
		f, err = set.SetFloor(req.Item)
	case len(old) > 0 && !req.Force:
		return api.Protocol{}, typed(api.CodeRefused, nil,
			fmt.Sprintf("these nodes speak a lower version with this one, and would be shut out: %s", strings.Join(old, ", ")),
			"update them first; or --force")
	default:
		f, err = set.RaiseFloor(ctx, req.Raise)
	}
	if err != nil {
		return api.Protocol{}, floorError(err, issuers)
	}
	return protocolOf(f), nil
}

// below lists the members that were last met with a lower version. Whom this
// node has not met, it cannot tell.
func below(snap membership.Snapshot, least uint8) []string {
	var out []string
	for _, m := range snap.Members {
		if m.Version != 0 && m.Version < least && m.State != membership.StateDead {
			out = append(out, m.Hostname)
		}
	}
	return out
}

// floorError says what to do about a floor that is not set.
func floorError(err error, issuers string) error {
	switch {
	case errors.Is(err, membership.ErrFloorAhead):
		return typed(api.CodeInvalid, err, fmt.Sprintf("this program speaks protocol version %d at most, so it would shut itself out", noisenet.VersionMax), "install a newer secure-overlay on all nodes first")
	case errors.Is(err, membership.ErrNotIssuer):
		return typed(api.CodeRefused, err, "this node holds no issuer key, so it cannot raise the protocol floor",
			"run the command on a node that has one: "+cmp.Or(issuers, "the one where the cluster was initialised"))
	case errors.Is(err, membership.ErrIssuerRevoked):
		return typed(api.CodeRefused, err, "the issuer key of this node is revoked, so it cannot raise the protocol floor",
			"run the command on a node with another issuer: secure-overlay issuer ls")
	case errors.Is(err, membership.ErrFloorOld):
		return typed(api.CodeRefused, err, "the floor was changed meanwhile", "secure-overlay protocol floor, and decide again")
	}
	return rootsError(err, "floor")
}

// rootsError says what to do about something that the root should have signed.
func rootsError(err error, what string) error {
	switch {
	case errors.Is(err, item.ErrOtherSigner), errors.Is(err, keys.ErrBadSignature), errors.Is(err, keys.ErrWrongCluster):
		return typed(api.CodeInvalid, err, "the "+what+" was not signed with the root key of this cluster", "use the root key that init wrote")
	case errors.Is(err, keys.ErrNotYetValid):
		return typed(api.CodeInvalid, err, "the "+what+" was signed in the future", "compare the clocks")
	case errors.Is(err, item.ErrMalformed):
		return typed(api.CodeInvalid, err, err.Error(), "use the same version of secure-overlay for both")
	}
	return err
}
