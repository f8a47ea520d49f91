package netlab

import (
	"fmt"
	"net"
	"slices"

	"github.com/vishvananda/netlink"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// Acquaint tells every host for good where all others are, so that nobody has to ask.
// The kernel keeps one table of neighbours for all namespaces, in which 1024 have room that
// it has asked for (net.ipv4.neigh.default.gc_thresh3), and what is for others is lost;
// permanent ones are not counted. Some 32 hosts that all talk to each other fill it.
func (l *Lab) Acquaint() error {
	l.mu.Lock()
	hosts := slices.Clone(l.hosts)
	l.mu.Unlock()
	macs := make([]net.HardwareAddr, len(hosts))
	for i, h := range hosts {
		if err := onLink(h.ns, HostLink, "find", func(_ *nl.Handle, link netlink.Link) error {
			macs[i] = link.Attrs().HardwareAddr
			return nil
		}); err != nil {
			return err
		}
	}
	for _, h := range hosts {
		if err := onLink(h.ns, HostLink, "set neighbours on", func(nlh *nl.Handle, link netlink.Link) error {
			for k, o := range hosts {
				if o == h {
					continue
				}
				for _, p := range o.Prefixes() {
					if err := nlh.NeighSet(&netlink.Neigh{
						LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, HardwareAddr: macs[k], IP: p.Addr().AsSlice(),
					}); err != nil {
						return fmt.Errorf("%s of %s: %w", p.Addr(), o.Name(), err)
					}
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
	return nil
}
