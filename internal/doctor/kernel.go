package doctor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// MissingCapabilities names the capabilities (capabilities(7)) that the agent
// needs and this process does not have. An unreadable set counts as empty.
func MissingCapabilities() []string {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		data = [2]unix.CapUserData{}
	}
	var missing []string
	for _, c := range []struct {
		bit  uint
		name string
	}{
		{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN"}, // links, routes, nftables
		{unix.CAP_NET_RAW, "CAP_NET_RAW"},     // raw sockets of drivers
		{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN"}, // network namespaces
	} {
		if data[c.bit/32].Effective&(1<<(c.bit%32)) == 0 {
			missing = append(missing, c.name)
		}
	}
	return missing
}

func capabilities() Finding {
	if missing := MissingCapabilities(); len(missing) > 0 {
		return Finding{Name: "capabilities", Level: Fail, Detail: "missing: " + strings.Join(missing, ", "), Fix: "run the command with sudo"}
	}
	return Finding{Name: "capabilities", Level: OK, Detail: "CAP_NET_ADMIN, CAP_NET_RAW, CAP_SYS_ADMIN"}
}

// ipv6 looks for the protocol itself: inner addresses are IPv6, whatever the
// underlay is.
func ipv6() Finding {
	f := Finding{Name: "ipv6", Level: OK, Detail: "present in the kernel"}
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		f = Finding{Name: "ipv6", Level: Fail, Detail: "the kernel runs without IPv6, which tunnels use inside (the underlay need not)",
			Fix: "remove ipv6.disable=1 from the kernel command line"}
	}
	return f
}

// kernel probes link kinds and nftables in a namespace of its own.
func kernel() []Finding {
	var out []Finding
	err := nl.InScratch(func(n *nl.Namespace, h *nl.Handle) error {
		for _, kind := range []string{"vxlan", "bridge", "veth"} {
			out = append(out, linkFinding(kind, h.ProbeLink(kind)))
		}
		out = append(out, nftFinding(probeNft(n)))
		return nil
	})
	if err != nil {
		fix := "run a kernel with CONFIG_NET_NS"
		if errors.Is(err, unix.EPERM) {
			fix = "run the command with sudo"
		}
		out = append(out, Finding{Name: "namespaces", Level: Fail, Detail: err.Error(), Fix: fix})
		return out
	}
	return append([]Finding{{Name: "namespaces", Level: OK, Detail: "network namespaces can be made"}}, out...)
}

func linkFinding(kind string, err error) Finding {
	switch {
	case err == nil:
		return Finding{Name: kind, Level: OK, Detail: "the kernel makes " + kind + " links"}
	case nl.IsNotSupported(err):
		return Finding{Name: kind, Level: Fail, Detail: "the kernel has no " + kind + " links", Fix: "modprobe " + kind + ", or a kernel with CONFIG_" + strings.ToUpper(kind)}
	default:
		return Finding{Name: kind, Level: Fail, Detail: err.Error(), Fix: "run the command with sudo"}
	}
}

// probeNft makes a table, a set and a chain's hook as the agent does, at once.
func probeNft(n *nl.Namespace) error {
	c, err := nftables.New(nftables.WithNetNSFd(n.FD()))
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: "probe"})
	c.AddChain(&nftables.Chain{
		Name: "probe", Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
	})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("make nftables chain: %w", err)
	}
	return nil
}

func nftFinding(err error) Finding {
	if err == nil {
		return Finding{Name: "nftables", Level: OK, Detail: "the kernel filters with nftables"}
	}
	fix := "modprobe nf_tables, or a kernel with CONFIG_NF_TABLES_INET"
	if errors.Is(err, unix.EPERM) {
		fix = "run the command with sudo"
	}
	return Finding{Name: "nftables", Level: Fail, Detail: err.Error(), Fix: fix}
}

// drivers probes each. One that does not work is a failure only if the
// configuration names it, or if none works.
func drivers(ctx context.Context, list []Driver) []Finding {
	var out []Finding
	works := 0
	for _, d := range list {
		err := d.Probe(ctx)
		f := Finding{Name: "driver " + d.Name, Level: OK, Detail: "works"}
		why := ""
		if err != nil {
			why = strings.TrimPrefix(err.Error(), f.Name+": ")
		}
		switch {
		case err == nil:
			works++
			if d.Slower != nil {
				if err := d.Slower(ctx); err != nil {
					f.Detail = "works, but slowly: " + strings.TrimPrefix(err.Error(), f.Name+": ")
				}
			}
		case d.Wanted:
			f = Finding{Name: f.Name, Level: Fail, Detail: why + "; the configuration asks for it", Fix: d.Fix + ", or remove driver: from the networks"}
		default:
			f = Finding{Name: f.Name, Level: Warn, Detail: why, Fix: d.Fix}
		}
		out = append(out, f)
	}
	if works == 0 && len(list) > 0 {
		out = append(out, Finding{Name: "tunnel", Level: Fail, Detail: "no tunnel driver works: encrypted networks stay down, they are never sent in the clear",
			Fix: "make one of the drivers above work"})
	}
	return out
}
