package nl

import (
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"
	rtnl "github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// ErrNotNamespace says that a path exists but names no network namespace.
var ErrNotNamespace = errors.New("not a network namespace")

// Handle is a route netlink handle bound to one namespace. It retries dumps
// that the kernel reports as interrupted (NLM_F_DUMP_INTR), so a list is
// either consistent or an error. It may be used from several goroutines.
type Handle struct {
	*netlink.Handle
	raw *rtnl.SocketHandle
}

// Handle opens a netlink handle on the namespace. The caller closes it.
func (n *Namespace) Handle() (*Handle, error) {
	fd := netns.NsHandle(n.FD())
	h, err := netlink.NewHandleWithOptions(netlink.HandleOptions{
		DisableVFInfoCollection: true,
		RetryInterrupted:        true,
		NetNS:                   &fd,
	}, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink in %s: %w", n.path, err)
	}
	return &Handle{Handle: h}, nil
}

// OpenRaw gives the handle a socket for Request. Few callers need one.
func (n *Namespace) OpenRaw(h *Handle) error {
	s, err := rtnl.GetNetlinkSocketAt(netns.NsHandle(n.FD()), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return fmt.Errorf("open netlink in %s: %w", n.path, err)
	}
	if err := errors.Join(s.SetSendTimeout(&rtnl.SocketTimeoutTv), s.SetReceiveTimeout(&rtnl.SocketTimeoutTv)); err != nil {
		_ = s.Close()
		return fmt.Errorf("open netlink in %s: %w", n.path, err)
	}
	h.raw = &rtnl.SocketHandle{Socket: s}
	return nil
}

// Request returns a route netlink request to the namespace that OpenRaw, which
// must come first, was given: for what the library has no method for. Its
// Execute needs no thread inside the namespace.
func (h *Handle) Request(proto, flags int) *rtnl.NetlinkRequest {
	req := rtnl.NewNetlinkRequest(proto, flags)
	req.RetryInterrupted = true
	req.Sockets = map[int]*rtnl.SocketHandle{unix.NETLINK_ROUTE: h.raw}
	return req
}

// Close releases the handle's sockets.
func (h *Handle) Close() {
	if h.raw != nil {
		_ = h.raw.Close()
	}
	_ = h.Handle.Close()
}

// IsNotExist reports whether err says that the link, address, route,
// neighbour or namespace it was about is not there.
func IsNotExist(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) ||
		errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENOENT) ||
		errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EADDRNOTAVAIL)
}

// IsExist reports whether err says that the object is there already.
func IsExist(err error) bool { return errors.Is(err, unix.EEXIST) }

// IsNotSupported reports whether err says that the kernel lacks the feature.
func IsNotSupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTSUP) ||
		errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EPROTONOSUPPORT)
}

// LoopbackUp sets lo up, which is down in a new namespace.
func (h *Handle) LoopbackUp() error {
	lo, err := h.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if lo.Attrs().Flags&net.FlagUp != 0 {
		return nil
	}
	if err := h.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}
