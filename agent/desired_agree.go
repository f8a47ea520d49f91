package agent

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/netdef"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// findShared compares this node's networks with what every member has signed.
// A network is connected with a member only if both define it the same way:
// otherwise frames of an encrypted network could meet a plaintext one, or two
// networks could share a VNI. Equal definition is an equivalence, so all nodes
// of one definition see the same group, except while it changes its form.
func (b *build) findShared() {
	for _, n := range b.nets {
		for _, p := range b.peers {
			joined, conflicts := compare(n.Network, b.in.Config.Data.VXLANPort, p.Record)
			for i := range conflicts {
				conflicts[i].Peer = api.NodeRef{ID: p.ID, Name: p.Name}
				b.disagreement(n, p, conflicts[i])
			}
			n.conflicts = append(n.conflicts, conflicts...)
			if !joined || slices.ContainsFunc(conflicts, func(c api.Conflict) bool { return c.Field != fieldEncrypted }) {
				continue
			}
			// Addresses and blocks are those of one network, whatever its form.
			n.alike = append(n.alike, p)
			if len(conflicts) == 0 {
				n.agreed = append(n.agreed, p)
			}
		}
	}
}

// compare reports whether a member has network own by name, and in which ways
// its record contradicts this node's definition.
func compare(own config.Network, port uint16, rec record.Node) (joined bool, conflicts []api.Conflict) {
	for _, their := range rec.Networks {
		switch {
		case their.Name == own.Name:
			joined = true
			conflicts = append(conflicts, differences(own, port, their)...)
		case their.VNI == own.VNI:
			conflicts = append(conflicts, api.Conflict{
				Field: "vni", Here: own.Name + " has " + own.VNI.String(), There: their.Name + " has " + their.VNI.String(),
				Reason: "two networks have one VNI",
			})
		}
	}
	return joined, conflicts
}

// differences lists the fields in which two definitions of one network differ.
func differences(own config.Network, port uint16, their record.Network) []api.Conflict {
	var out []api.Conflict
	add := func(field, here, there string) {
		if here != there {
			out = append(out, api.Conflict{Field: field, Here: here, There: there})
		}
	}
	add("vni", own.VNI.String(), their.VNI.String())
	add("subnets", netdef.Text(netdef.Prefixes(own.Subnets)), netdef.Text(netdef.Prefixes(their.Subnets)))
	if !(own.Tunnelled() && tunnelled(their)) && !(own.Clear() && clearOf(their)) {
		add(fieldEncrypted, strconv.FormatBool(own.Encrypted), strconv.FormatBool(their.Encrypted))
	}
	add("vxlan_port", strconv.Itoa(int(port)), strconv.Itoa(int(their.VTEPPort)))
	for _, d := range own.Options.Differences(their.Options) {
		add(d.Field, cmp.Or(d.Here, "none"), cmp.Or(d.There, "none"))
	}
	return out
}

// fieldEncrypted is what two nodes without a common form of a network differ in.
const fieldEncrypted = "encrypted"

// tunnelled and clearOf report whether a node receives frames of a network by its
// tunnel, and in clear.
func tunnelled(n record.Network) bool { return n.Encrypted || n.Both }
func clearOf(n record.Network) bool   { return !n.Encrypted || n.Both }

// theirs is what a node says about a network that it has.
func theirs(n *network, p *peer) record.Network {
	i := slices.IndexFunc(p.Record.Networks, func(r record.Network) bool { return r.Name == n.Name })
	if i < 0 {
		return record.Network{}
	}
	return p.Record.Networks[i]
}

func (b *build) disagreement(n *network, p *peer, c api.Conflict) {
	key := "networks[]." + c.Field + " of " + n.Name
	if c.Field == "vxlan_port" {
		key = "data.vxlan_port"
	}
	fix := fmt.Sprintf("give %s the same value in the configuration of both nodes", key)
	if c.Reason != "" {
		fix = "give one of the two networks another vni in its configuration"
	}
	b.problem("network-disagreement", n.Name,
		fmt.Sprintf("network %s is not connected with node %s: %s is %s here and %s there",
			n.Name, p.title(), c.Field, c.Here, c.There), fix)
}
