package nl

import (
	"bytes"
	"syscall"

	rtnl "github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ParseAttrs reads the attributes behind the header of a message (netlink(7)). The
// library's parser, which does the work, panics where the padding of the last
// attribute is missing; the kernel never leaves it out, but a decoder must not
// depend on that.
func ParseAttrs(b []byte) ([]syscall.NetlinkRouteAttr, error) {
	if n := len(b) % unix.NLA_ALIGNTO; n != 0 {
		b = append(bytes.Clone(b), make([]byte, unix.NLA_ALIGNTO-n)...)
	}
	return rtnl.ParseRouteAttr(b)
}
