package tunnel

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// markPrefix starts the alias of every link this project owns.
const markPrefix = "secure-overlay"

// Mark is what a tunnel link says about itself in its alias (IFLA_IFALIAS):
// which agent owns it and what it is. It is the only memory a restarted agent
// needs to adopt its devices; nothing about them is kept on disk.
type Mark struct {
	Node     ids.NodeID
	Protocol string // "wg", "esp"
	Driver   string // Kind.Name
	Epoch    ids.Epoch
	Lane     ids.Lane
}

// String returns the alias: secure-overlay/<node>/<protocol>/<driver>/<epoch>/<lane>,
// far below the 255 bytes that IFALIASZ allows.
func (m Mark) String() string {
	return fmt.Sprintf("%s/%s/%s/%s/%d/%d", markPrefix, m.Node, m.Protocol, m.Driver, m.Epoch, m.Lane)
}

// ParseMark reads a link alias. It reports false for anything that String
// would not have printed, so that a foreign link is never taken for ours.
func ParseMark(alias string) (Mark, bool) {
	f := strings.Split(alias, "/")
	if len(f) != 6 || f[0] != markPrefix || f[2] == "" || f[3] == "" {
		return Mark{}, false
	}
	node, err := ids.ParseNodeID(f[1])
	if err != nil {
		return Mark{}, false
	}
	epoch, err := strconv.ParseUint(f[4], 10, 32)
	if err != nil {
		return Mark{}, false
	}
	lane, err := strconv.ParseUint(f[5], 10, 8)
	if err != nil {
		return Mark{}, false
	}
	m := Mark{Node: node, Protocol: f[2], Driver: f[3], Epoch: ids.Epoch(epoch), Lane: ids.Lane(lane)}
	return m, m.String() == alias
}

// Overhead is what a tunnel of any driver may add to an inner packet, in bytes.
// It is WireGuard's: ESP adds at most 57 or 77 by itself (20 or 40 of IP, 8 of
// header, 8 of IV, up to 5 of padding and trailer, 16 of ICV), so a device of
// one MTU carries the same packets whichever driver made it. A driver that
// needs more, as ESP in UDP does, says so by Kind.Overhead, and its node
// publishes an underlay MTU that is so much smaller.
func Overhead(underlay netip.Addr) int { return WireGuardOverhead(underlay) }

// WireGuardOverhead is what WireGuard adds to an inner packet, in bytes: the
// outer IP header (20 or 40), UDP (8), and the data message's header (16) and
// tag (16). WireGuard pads the inner packet to a multiple of 16 bytes, but
// never beyond the device's MTU, so padding does not count.
func WireGuardOverhead(underlay netip.Addr) int {
	const udp, header, tag = 8, 16, 16
	if underlay.Unmap().Is4() {
		return 20 + udp + header + tag
	}
	return 40 + udp + header + tag
}
