package doctor

import (
	"context"
	"net/netip"
	"slices"
)

// Level is how bad a finding is.
type Level string

// The levels.
const (
	OK   Level = "ok"
	Warn Level = "warn" // works in part
	Fail Level = "fail" // the agent cannot work
)

// Finding is the result of one check.
type Finding struct {
	Name   string `json:"name"` // what was checked
	Level  Level  `json:"level"`
	Detail string `json:"detail"`        // what was found
	Fix    string `json:"fix,omitempty"` // what to do; set unless the level is OK
}

// Driver is a tunnel driver to be probed.
type Driver struct {
	Name  string
	Probe func(context.Context) error // nil: it works
	// Slower says what it has to do without, where it works: nil: nothing.
	Slower func(context.Context) error
	Fix    string // what to do if it does not work
	// Wanted is set if the configuration names this driver, so that no other
	// one can stand in for it.
	Wanted bool
}

// Options says what to look at. The zero value of a field leaves out what it
// is for.
type Options struct {
	Drivers   []Driver
	Control   netip.AddrPort // control plane, TCP and UDP
	DataPorts []uint16       // tunnels, UDP: the first is in use now, the others after rotations
	VXLANPort uint16         // plaintext networks, UDP; zero if there is none
	ESP       *ESP           // nil: no ESP driver
	// AgentRunning explains ports that are in use.
	AgentRunning bool
	Peers        []netip.Addr // addresses whose route is looked at besides the default route
	// InnerMTU computes what an encrypted network may have on an underlay.
	InnerMTU func(underlay int, via netip.Addr) int
	MTUs     map[string]int // network name -> configured MTU
}

// Run makes every check. It needs no privileges to return, but says less
// without them.
func Run(ctx context.Context, o Options) []Finding {
	out := []Finding{capabilities(), ipv6()}
	if len(MissingCapabilities()) > 0 {
		// Every probe would fail for that one reason.
		out = append(out, Finding{Name: "kernel, drivers", Level: Warn, Detail: "not checked: that needs the capabilities", Fix: "run the command with sudo"})
		return append(out, ports(o)...)
	}
	out = append(out, kernel()...)
	out = append(out, drivers(ctx, o.Drivers)...)
	out = append(out, esp(o)...)
	out = append(out, ports(o)...)
	return append(out, mtus(o)...)
}

// Worst is the worst level among findings.
func Worst(list []Finding) Level {
	for _, l := range []Level{Fail, Warn} {
		if slices.ContainsFunc(list, func(f Finding) bool { return f.Level == l }) {
			return l
		}
	}
	return OK
}
