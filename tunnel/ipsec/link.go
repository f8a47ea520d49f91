package ipsec

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	rtnl "github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// attempts is how many interface IDs are tried for one device.
const attempts = 8

const ifIDDomain = "so-if-id-v1"

// deriveIfID gives a device of a node its interface ID: 31 bits of
// SHA-256("so-if-id-v1" || node || epoch || lane || attempt), the top bit set,
// since people and IKE daemons count from 1. It is derived, not drawn, so that
// a device that somebody deleted comes back with the ID that its associations
// and policies still carry.
func deriveIfID(node ids.NodeID, epoch ids.Epoch, lane ids.Lane, attempt uint8) uint32 {
	b := append([]byte(ifIDDomain), node[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(epoch))
	sum := sha256.Sum256(append(b, byte(lane), attempt))
	return binary.BigEndian.Uint32(sum[:]) | 1<<31
}

// ifIDOf reads the interface ID of a link of ours.
func ifIDOf(l netlink.Link) uint32 {
	if x, ok := l.(*netlink.Xfrmi); ok {
		return x.Ifid
	}
	return 0
}

// createLink makes a device's link under the first interface ID that nobody
// else uses, and returns the ID.
func (d *driver) createLink(name string, dev tunnel.Device) (uint32, error) {
	foreign, err := d.conn.IfIDs(d.ours)
	if err != nil {
		return 0, err
	}
	host, err := d.hostNSID()
	if err != nil {
		return 0, err
	}
	for attempt := range uint8(attempts) {
		id := deriveIfID(d.env.Node, dev.Epoch, dev.Lane, attempt)
		if foreign[id] {
			continue
		}
		err = d.newLink(name, id, dev.MTU, host)
		if nl.IsNotSupported(err) {
			return 0, missing("xfrm interfaces (CONFIG_XFRM_INTERFACE)", "Linux 4.19", err)
		}
		// Another xfrm interface, wherever it lives, that encrypts in the host
		// namespace has the ID.
		if !nl.IsExist(err) {
			return id, err
		}
	}
	return 0, fmt.Errorf("no free interface ID, or a link %s in the host namespace: %w", name, unix.EEXIST)
}

// newLink asks, in the secure namespace, for a link whose associations are
// looked up in the host namespace. The kernel takes for that the namespace in
// which the link is made; IFLA_LINK_NETNSID names it, and the kernel moves the
// link on within the one request. A link that is made in the host namespace and
// moved by a second request is the same, but stays there if the agent dies in
// between. netlink.LinkAdd does not know the attribute.
func (d *driver) newLink(name string, ifID uint32, mtu, host int) error {
	req := d.secure.Request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	req.AddData(rtnl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(rtnl.NewRtAttr(unix.IFLA_IFNAME, rtnl.ZeroTerminated(name)))
	req.AddData(rtnl.NewRtAttr(unix.IFLA_MTU, rtnl.Uint32Attr(uint32(mtu))))
	req.AddData(rtnl.NewRtAttr(unix.IFLA_LINK_NETNSID, rtnl.Uint32Attr(uint32(host))))
	info := rtnl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(rtnl.IFLA_INFO_KIND, rtnl.NonZeroTerminated(linkType))
	info.AddRtAttr(rtnl.IFLA_INFO_DATA, nil).AddRtAttr(rtnl.IFLA_XFRM_IF_ID, rtnl.Uint32Attr(ifID))
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// hostNSID returns the number by which the secure namespace knows the host
// namespace, and gives it one if it has none.
func (d *driver) hostNSID() (int, error) {
	const none = -1 // NETNSA_NSID_NOT_ASSIGNED, linux/net_namespace.h; in a request: let the kernel choose
	fd := d.env.Host.FD()
	id, err := d.secure.GetNetNsIdByFd(fd)
	if err == nil && id == none {
		if err = d.secure.SetNetNsIdByFd(fd, none); err == nil || nl.IsExist(err) {
			id, err = d.secure.GetNetNsIdByFd(fd)
		}
	}
	if err == nil && id == none {
		err = errors.New("the kernel gives it no ID")
	}
	if err != nil {
		return 0, fmt.Errorf("name the host namespace in %s: %w", d.env.Secure.Path(), err)
	}
	return id, nil
}
