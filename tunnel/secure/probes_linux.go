package secure

import (
	"errors"
	"fmt"
	"reflect"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// A device that carries probes has a routing table of its own, with a route to
// each peer that is probed through it, and a rule that sends there what is
// bound for that device and nothing else. A second route in the main table would
// not do: the answer to a probe is bound for the device on which the request
// came, but not strictly, and a route with a better metric wins over it.
const (
	// probePriority puts the rules between the table of local addresses (0)
	// and the main table (32766).
	probePriority = 1000
	// firstProbeTable is the lowest table; each device takes the lowest free
	// one. The rules say which table is whose.
	firstProbeTable = 0x5300
)

// probeRule sends what is bound for a device to a table.
func probeRule(device string, table int) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Priority, r.Protocol = unix.AF_INET6, probePriority, nl.RouteProtocol
	r.OifName, r.Table = device, table
	return r
}

// rules lists the rules of ours.
func (n *Namespace) rules() ([]netlink.Rule, error) {
	rules, err := n.h.RuleList(unix.AF_INET6)
	if err != nil {
		return nil, fmt.Errorf("list routing rules: %w", err)
	}
	return slices.DeleteFunc(rules, func(r netlink.Rule) bool { return r.Protocol != nl.RouteProtocol }), nil
}

// probeTables returns the tables of devices that have a right rule of ours, and
// the other rules of ours.
func (n *Namespace) probeTables() (map[string]int, []netlink.Rule, error) {
	rules, err := n.rules()
	if err != nil {
		return nil, nil, err
	}
	tables, taken := map[string]int{}, map[int]bool{}
	var wrong []netlink.Rule
	for _, r := range rules {
		_, twice := tables[r.OifName]
		if r.OifName == "" || r.Table < firstProbeTable || twice || taken[r.Table] ||
			!reflect.DeepEqual(r, *probeRule(r.OifName, r.Table)) {
			wrong = append(wrong, r)
			continue
		}
		tables[r.OifName], taken[r.Table] = r.Table, true
	}
	return tables, wrong, nil
}

// dropRules removes the rules of devices that carry no probes, and returns the
// tables of those that do; addRules makes the rules that are missing, when
// the tables hold what they should.
func (n *Namespace) dropRules(probes []Route, devices map[string]int) (map[string]int, error) {
	want := map[string]int{}
	for _, r := range probes {
		if _, ok := devices[r.Device]; ok {
			want[r.Device] = 0
		}
	}
	have, err := n.pruneRules(want)
	if err != nil {
		return nil, err
	}
	taken := map[int]bool{}
	for device, table := range have {
		want[device], taken[table] = table, true
	}
	for device, table := range want {
		if table != 0 {
			continue
		}
		for table = firstProbeTable; taken[table]; table++ {
		}
		want[device], taken[table] = table, true
	}
	return want, nil
}

// pruneRules deletes the rules of ours that are wrong or not wanted, and
// returns the tables of the others. It looks again after each deletion: to the
// kernel what a request leaves out matches anything, so deleting a rule that
// names no device can hit one that does.
func (n *Namespace) pruneRules(want map[string]int) (map[string]int, error) {
	const limit = 1000 // somebody may be adding them as fast
	for range limit {
		have, wrong, err := n.probeTables()
		if err != nil {
			return nil, err
		}
		for device, table := range have {
			if _, ok := want[device]; !ok {
				wrong = append(wrong, *probeRule(device, table))
			}
		}
		if len(wrong) == 0 {
			return have, nil
		}
		if err := n.h.RuleDel(&wrong[0]); err != nil && !nl.IsNotExist(err) {
			return nil, fmt.Errorf("delete routing rule of %s: %w", wrong[0].OifName, err)
		}
	}
	return nil, errors.New("delete routing rules: there are always more")
}

func (n *Namespace) addRules(tables map[string]int) error {
	have, _, err := n.probeTables()
	if err != nil {
		return err
	}
	var errs []error
	for device, table := range tables {
		if have[device] == table {
			continue
		}
		if err := n.h.RuleAdd(probeRule(device, table)); err != nil {
			errs = append(errs, fmt.Errorf("add routing rule of %s: %w", device, err))
		}
	}
	return errors.Join(errs...)
}
