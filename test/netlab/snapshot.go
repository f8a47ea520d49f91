package netlab

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// Snapshot describes the configuration of a namespace in sorted lines: links
// with type, state, MTU, master, alias and addresses; routes and rules of
// every table; nftables tables, chains, sets with their elements, and the
// number of rules. Interface indexes, counters and anything else that differs
// between two equal configurations is left out, so two snapshots can be compared.
func Snapshot(ns *nl.Namespace) (string, error) {
	h, err := ns.Handle()
	if err != nil {
		return "", fmt.Errorf("take snapshot: %w", err)
	}
	defer h.Close()
	var lines []string
	for _, part := range []func() ([]string, error){
		func() ([]string, error) { return linkLines(h) },
		func() ([]string, error) { return routeLines(h) },
		func() ([]string, error) { return ruleLines(h) },
		func() ([]string, error) { return nftLines(ns) },
	} {
		more, err := part()
		if err != nil {
			return "", fmt.Errorf("take snapshot of %s: %w", ns.Path(), err)
		}
		slices.Sort(more)
		lines = append(lines, more...)
	}
	return strings.Join(lines, "\n") + "\n", nil
}

func linkLines(h *nl.Handle) ([]string, error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := linkNames(links)
	var lines []string
	for _, link := range links {
		a := link.Attrs()
		state := "down"
		if a.RawFlags&unix.IFF_UP != 0 {
			state = "up"
		}
		line := fmt.Sprintf("link %s type %s mtu %d %s", a.Name, link.Type(), a.MTU, state)
		if a.MasterIndex != 0 {
			line += " master " + names[a.MasterIndex]
		}
		if a.Alias != "" {
			line += fmt.Sprintf(" alias %q", a.Alias)
		}
		lines = append(lines, line)
		addrs, err := h.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			return nil, fmt.Errorf("list addresses of %s: %w", a.Name, err)
		}
		for _, addr := range addrs {
			lines = append(lines, fmt.Sprintf("link %s address %s", a.Name, addr.IPNet))
		}
	}
	return lines, nil
}

func routeLines(h *nl.Handle) ([]string, error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	names := linkNames(links)
	var lines []string
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		routes, err := h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			// Cached exceptions are no configuration, and what the kernel puts
			// into the local table follows from the addresses, some time later.
			if r.Flags&unix.RTM_F_CLONED != 0 || (r.Table == unix.RT_TABLE_LOCAL && r.Protocol == unix.RTPROT_KERNEL) {
				continue
			}
			dst := "default"
			if r.Dst != nil {
				dst = r.Dst.String()
			}
			lines = append(lines, fmt.Sprintf("route %s table %d type %d proto %d metric %d via %v dev %s src %v",
				dst, r.Table, r.Type, int(r.Protocol), r.Priority, r.Gw, names[r.LinkIndex], r.Src))
		}
	}
	return lines, nil
}

func ruleLines(h *nl.Handle) ([]string, error) {
	var lines []string
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := h.RuleList(family)
		if nl.IsNotSupported(err) {
			continue // a kernel without policy routing
		}
		if err != nil {
			return nil, fmt.Errorf("list rules: %w", err)
		}
		for _, r := range rules {
			lines = append(lines, fmt.Sprintf("rule family %d priority %d from %v to %v mark %d table %d",
				family, r.Priority, r.Src, r.Dst, r.Mark, r.Table))
		}
	}
	return lines, nil
}

func linkNames(links []netlink.Link) map[int]string {
	names := make(map[int]string, len(links))
	for _, link := range links {
		names[link.Attrs().Index] = link.Attrs().Name
	}
	return names
}

func nftLines(ns *nl.Namespace) ([]string, error) {
	c, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	tables, err := c.ListTables()
	if err != nil {
		return nil, fmt.Errorf("list nftables tables: %w", err)
	}
	var lines []string
	for _, t := range tables {
		lines = append(lines, fmt.Sprintf("nft table %d %s", t.Family, t.Name))
		sets, err := setLines(c, t)
		if err != nil {
			return nil, err
		}
		lines = append(lines, sets...)
	}
	chains, err := c.ListChains()
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	for _, ch := range chains {
		rules, err := c.GetRules(ch.Table, ch)
		if err != nil {
			return nil, fmt.Errorf("list rules of nftables chain %s: %w", ch.Name, err)
		}
		line := fmt.Sprintf("nft chain %d %s %s rules %d", ch.Table.Family, ch.Table.Name, ch.Name, len(rules))
		if ch.Policy != nil {
			line += fmt.Sprintf(" policy %d", *ch.Policy)
		}
		lines = append(lines, line)
	}
	return lines, nil
}

func setLines(c *nftables.Conn, t *nftables.Table) ([]string, error) {
	sets, err := c.GetSets(t)
	if err != nil {
		return nil, fmt.Errorf("list sets of nftables table %s: %w", t.Name, err)
	}
	var lines []string
	for _, s := range sets {
		prefix := fmt.Sprintf("nft set %d %s %s", t.Family, t.Name, s.Name)
		lines = append(lines, prefix)
		elems, err := c.GetSetElements(s)
		if err != nil {
			return nil, fmt.Errorf("list elements of nftables set %s: %w", s.Name, err)
		}
		for _, e := range elems {
			lines = append(lines, fmt.Sprintf("%s element %x", prefix, e.Key))
		}
	}
	return lines, nil
}

// NamespaceMounts lists, sorted, the paths under a folder at which network or
// other namespaces are bound. It shows whether a run left one behind.
func NamespaceMounts(under string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list namespace mounts: %w", err)
	}
	defer func() { _ = f.Close() }()
	var paths []string
	sc := bufio.NewScanner(f)
	for sc.Scan() {
		// proc_pid_mountinfo(5): ... mount point is field 5, the type follows " - ".
		left, right, ok := strings.Cut(sc.Text(), " - ")
		fields := strings.Fields(left)
		if !ok || len(fields) < 5 || !strings.HasPrefix(right, "nsfs ") {
			continue
		}
		path := unescape(fields[4])
		if rel, err := filepath.Rel(under, path); err == nil && filepath.IsLocal(rel) {
			paths = append(paths, path)
		}
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("list namespace mounts: %w", err)
	}
	slices.Sort(paths)
	return paths, nil
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	if u, err := strconv.Unquote(`"` + s + `"`); err == nil {
		return u
	}
	return s
}
