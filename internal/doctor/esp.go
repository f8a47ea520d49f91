package doctor

import (
	"slices"
	"strings"

	"golang.org/x/sys/cpu"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// ESP says what an ESP driver would need of this machine besides the kernel's
// features, which its probe looks at.
type ESP struct {
	Wanted bool   // the configuration names the driver
	Port   uint16 // of ESP in UDP; zero: plain ESP
	// PortOptional: the port is needed only where ESP as it is does not pass.
	PortOptional bool
}

// esp looks at what would weaken, stop or slow down ESP here. Whether the
// underlay lets ESP pass shows only with a peer: tunnels that stay unproved.
func esp(o Options) []Finding {
	if o.ESP == nil {
		return nil
	}
	out := []Finding{policyFinding(*o.ESP), cipherFinding(hasAES(), *o.ESP)}
	if o.ESP.Port != 0 && o.ESP.Wanted {
		return append(out, espPortFinding(o))
	}
	return out
}

// policyFinding looks for devices on which the kernel would not compare the
// inner source of a packet with the association that it came on: the driver
// refuses to receive there.
func policyFinding(e ESP) Finding {
	f := Finding{Name: "esp policies", Level: OK, Detail: "the kernel checks the inner source of what comes in"}
	off, err := policiesOff()
	if err != nil {
		f.Level, f.Detail, f.Fix = Warn, err.Error(), "run the command with sudo"
		return f
	}
	if len(off) == 0 {
		return f
	}
	f.Level, f.Detail = Warn, "ipsec cannot be used on an address with "+strings.Join(off, ", ")
	if e.Wanted {
		f.Level = Fail
	}
	for i, key := range off {
		off[i] = "net/" + key + "=0" // with slashes: a device's name may have dots
	}
	f.Fix = "sysctl -w " + strings.Join(off, " ")
	return f
}

// policiesOff lists the settings that switch IPsec policies off on devices
// with addresses that others can reach.
func policiesOff() ([]string, error) {
	here, err := nl.CurrentNamespace()
	if err != nil {
		return nil, err
	}
	defer func() { _ = here.Close() }()
	h, err := here.Handle()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	addrs, err := h.GlobalAddrs()
	if err != nil {
		return nil, err
	}
	devices := []string{"all"}
	for _, a := range addrs {
		if !slices.Contains(devices, a.Device) {
			devices = append(devices, a.Device)
		}
	}
	var want []nl.Sysctl
	for _, d := range devices {
		for _, family := range []string{"ipv4", "ipv6"} {
			want = append(want, nl.Sysctl{Key: family + "/conf/" + d + "/disable_policy", Value: "0", Optional: true})
		}
	}
	return here.SysctlDrift(want)
}

func hasAES() bool { return cpu.X86.HasAES || cpu.ARM64.HasAES || cpu.S390X.HasAES }

func cipherFinding(hardware bool, e ESP) Finding {
	if hardware {
		return Finding{Name: "esp cipher", Level: OK, Detail: "the processor has AES instructions"}
	}
	f := Finding{Name: "esp cipher", Level: OK, Detail: "the processor has no AES instructions; ipsec would be slow here, WireGuard is not"}
	if e.Wanted {
		f.Level, f.Fix = Warn, "use driver: auto, unless ESP is what you need"
	}
	return f
}

// espPortFinding tries the port of ESP in UDP, which IKE daemons use as well.
func espPortFinding(o Options) Finding {
	out := ports(Options{DataPorts: []uint16{o.ESP.Port}, AgentRunning: o.AgentRunning})[0]
	out.Detail = strings.Replace(out.Detail, "data:", "esp in udp:", 1)
	if o.ESP.PortOptional && out.Level == Fail {
		out.Level = Warn
		out.Detail += "; where ESP is blocked, a pair cannot go over to UDP"
	}
	return out
}
