package xfrm

import (
	"fmt"
	"net/netip"

	rtnl "github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// Conn speaks to the kernel of one namespace. It is used by one goroutine.
// Its errors match the kernel's errno.
type Conn struct{ x *nl.Keyed }

// Open opens a connection. An error that matches nl.IsNotSupported says that the
// kernel has no XFRM (CONFIG_XFRM_USER). The caller closes it.
func Open(ns *nl.Namespace) (*Conn, error) {
	x, err := ns.Keyed(unix.NETLINK_XFRM)
	if err != nil {
		return nil, err
	}
	return &Conn{x: x}, nil
}

// Close releases the socket.
func (c *Conn) Close() { c.x.Close() }

// AddState installs an association with the 36 bytes of key material that
// keys.TunnelSecret.ExposeESP gives out. EEXIST says that another association
// has the name.
func (c *Conn) AddState(s State, material []byte) error {
	body := encodeState(s, material)
	defer clear(body)
	if err := c.x.Do(rtnl.XFRM_MSG_NEWSA, body, nil); err != nil {
		return fmt.Errorf("add association %s to %s: %w", s.SPI, s.Dst, err)
	}
	return nil
}

// DeleteState removes an association; a missing one is no error.
func (c *Conn) DeleteState(n Name) error {
	err := c.x.Do(rtnl.XFRM_MSG_DELSA, encodeName(n), nil)
	if err != nil && !nl.IsNotExist(err) {
		return fmt.Errorf("delete association %s to %s: %w", n.SPI, n.Dst, err)
	}
	return nil
}

// Usage reads an association without its key. It reports false if there is
// none of that name.
func (c *Conn) Usage(n Name) (u Usage, ok bool, err error) {
	err = c.x.Do(rtnl.XFRM_MSG_GETAE, encodeUsage(n), func(m []byte) { u, ok = decodeUsage(m) })
	if nl.IsNotExist(err) {
		return Usage{}, false, nil
	}
	if err != nil {
		return Usage{}, false, fmt.Errorf("read association %s to %s: %w", n.SPI, n.Dst, err)
	}
	return u, ok, nil
}

// States lists the associations that State can describe, other programs' as
// well. It makes the kernel send the keys of all associations; they are
// cleared unread. Use it only to find what nothing else leads to.
func (c *Conn) States() ([]State, error) {
	var out []State
	err := c.x.Dump(rtnl.XFRM_MSG_GETSA, nil, func(m []byte) {
		if s, ok := decodeState(m); ok {
			out = append(out, s)
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list associations: %w", err)
	}
	return out, nil
}

// SetPolicy installs a policy, in place of one with the same direction,
// interface and inner addresses, in one step.
func (c *Conn) SetPolicy(p Policy) error {
	if err := c.x.Do(rtnl.XFRM_MSG_UPDPOLICY, encodePolicy(p), nil); err != nil {
		return fmt.Errorf("set policy from %s to %s: %w", p.From, p.To, err)
	}
	return nil
}

// DeletePolicy removes the policy with p's direction, interface and inner
// addresses; a missing one is no error.
func (c *Conn) DeletePolicy(p Policy) error {
	err := c.x.Do(rtnl.XFRM_MSG_DELPOLICY, encodePolicyName(p), nil)
	if err != nil && !nl.IsNotExist(err) {
		return fmt.Errorf("delete policy from %s to %s: %w", p.From, p.To, err)
	}
	return nil
}

// Listed is a policy as it was found.
type Listed struct {
	Policy
	// Exact: it demands what it says, and nothing besides. One that is not
	// has been changed by somebody.
	Exact bool
}

// Policies lists the policies that Policy can describe: between two single
// IPv6 addresses, other programs' as well.
func (c *Conn) Policies() ([]Listed, error) {
	var out []Listed
	err := c.x.Dump(rtnl.XFRM_MSG_GETPOLICY, nil, func(m []byte) {
		if p, exact, ok := decodePolicy(m); ok {
			out = append(out, Listed{Policy: p, Exact: exact})
		}
	})
	if err != nil {
		return nil, fmt.Errorf("list policies: %w", err)
	}
	return out, nil
}

// IfIDs returns the interface IDs that associations and policies carry, except
// those between inner addresses for which skip is true. It makes the kernel send
// keys, as States does.
func (c *Conn) IfIDs(skip func(from, to netip.Addr) bool) (map[uint32]bool, error) {
	out := map[uint32]bool{}
	for _, list := range []struct {
		typ    uint16
		header int
	}{{rtnl.XFRM_MSG_GETSA, rtnl.SizeofXfrmUsersaInfo}, {rtnl.XFRM_MSG_GETPOLICY, rtnl.SizeofXfrmUserpolicyInfo}} {
		err := c.x.Dump(list.typ, nil, func(m []byte) {
			if id, from, to := decodeIfID(m, list.header); id != 0 && !skip(from, to) {
				out[id] = true
			}
		})
		if err != nil {
			return nil, fmt.Errorf("list interface IDs: %w", err)
		}
	}
	return out, nil
}
