package agent

import (
	"fmt"
	"path/filepath"
	"strings"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/internal/netdef"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// complete gives a new attachment its name and its default routes, and checks the MAC
// that was chosen for it.
func (l *loop) complete(in Input, n config.Network, p *pendingAttach, at *Attachment) (err error) {
	if at.Name == "" {
		at.Name = l.defaultName(p, at.ID)
	}
	size := record.Attached{Name: at.Name, Services: at.Services}.NameSize()
	for _, other := range l.attachments {
		size += record.Attached{Name: other.Name, Services: other.Services}.NameSize()
	}
	if size > record.MaxNames {
		return api.NewError(api.CodeRefused, fmt.Sprintf("the names of this node's endpoints would have %d bytes, at most %d fit into its record", size, record.MaxNames),
			"give shorter names or fewer services")
	}
	if at.MAC != (ids.MAC{}) {
		if err := l.macIsFree(in, n, at.MAC); err != nil {
			return err
		}
	}
	if p.req.DefaultRoute {
		at.Ways, err = l.waysOut(n, at.Addrs)
	}
	return err
}

// macIsFree refuses a MAC that somebody has: frames to it would go to one of the two.
func (l *loop) macIsFree(in Input, n config.Network, mac ids.MAC) error {
	taken := func(whose string) error {
		return api.NewError(api.CodeRefused, fmt.Sprintf("MAC %s belongs to %s", mac, whose), "leave out --mac, or give another one")
	}
	if mac == gatewayMAC(n) {
		return taken("the gateway of the network")
	}
	for _, m := range in.Members {
		for _, a := range m.Record.Attached {
			if a.VNI == n.VNI && a.MAC == mac {
				return taken("an endpoint of node " + m.title())
			}
		}
	}
	for _, a := range in.Attachments {
		if a.Network == n.Name && macOf(n, a) == mac {
			return taken("endpoint " + a.ID + " of this node")
		}
	}
	return nil
}

// defaultName is what an endpoint is called of which nobody said a name: as its
// namespace is called by ip-netns(8), the host by its node's name, else by its ID.
func (l *loop) defaultName(p *pendingAttach, id string) string {
	name := ""
	switch dir := filepath.Dir(p.path); {
	case p.req.Host:
		name = l.identity.Hostname
	case dir == "/run/netns" || dir == "/var/run/netns":
		name = filepath.Base(p.path)
	}
	if name = strings.ToLower(name); netdef.IsDNSLabel(name) {
		return name
	}
	return id
}
