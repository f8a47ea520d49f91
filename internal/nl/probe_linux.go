package nl

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// InScratch runs fn with a handle on a new network namespace that goes away
// afterwards, together with whatever fn made in it.
func InScratch(fn func(n *Namespace, h *Handle) error) error {
	return onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make scratch namespace: %w", err)
		}
		scratch, err := CurrentNamespace()
		if err != nil {
			return err
		}
		h, err := scratch.Handle()
		if err != nil {
			return errors.Join(err, scratch.Close())
		}
		err = fn(scratch, h)
		h.Close()
		return errors.Join(err, scratch.Close())
	})
}

// ProbeLink reports whether the kernel knows a kind of link, such as vxlan,
// by asking it to make one without parameters; use it InScratch. An error
// that matches IsNotSupported says that it does not.
func (h *Handle) ProbeLink(kind string) error {
	link := &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: "probe0"}, LinkType: kind}
	err := h.LinkAdd(link)
	switch {
	case err == nil:
		return h.LinkDel(link)
	case errors.Is(err, unix.EINVAL):
		return nil // the kind is known and wants parameters
	default:
		return fmt.Errorf("make a %s link: %w", kind, err)
	}
}
