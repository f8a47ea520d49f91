package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/netdef"
)

// Setting is one effective value, for `config show`.
type Setting struct {
	Key    string `json:"key"` // control.bind, networks[blue].vni
	Value  string `json:"value"`
	Origin Origin `json:"origin,omitempty"` // default, FILE:LINE, "env NAME", "flag --name", "derived ..."
}

// Settings lists every effective value in the order of the file.
func (c Config) Settings() []Setting {
	values := map[string]string{
		"node.name": c.Node.Name, "data_dir": c.DataDir, "runtime_dir": c.RuntimeDir,
		"control.bind": c.Control.Bind.String(), "control.advertise": advertiseText(c.Control.Advertise),
		"control.seeds": strings.Join(c.Control.Seeds, ","), "control.profile": c.Control.Profile,
		"data.port": strconv.Itoa(int(c.Data.Port)), "data.vxlan_port": strconv.Itoa(int(c.Data.VXLANPort)),
		"keys.rotate_every": durationText(c.Keys.RotateEvery), "keys.min_interval": durationText(c.Keys.MinInterval),
		"keys.drain": durationText(c.Keys.Drain), "keys.quiet": durationText(c.Keys.Quiet), "keys.hold_down": durationText(c.Keys.HoldDown),
		"keys.esp_max_packets": strconv.FormatUint(c.Keys.ESPMaxPackets, 10), "keys.esp_max_bytes": strconv.FormatUint(c.Keys.ESPMaxBytes, 10),
		"crypto.require_pq": strconv.FormatBool(c.Crypto.RequirePQ), "crypto.clock_tolerance": durationText(c.Crypto.ClockTolerance),
		"ipsec.encap": c.IPsec.Encap, "metrics.listen": addrText(c.Metrics.Listen, "none"),
		"log.level": c.Log.Level, "log.format": c.Log.Format,
	}
	var out []Setting
	for _, l := range leaves() {
		out = append(out, Setting{Key: l.path, Value: values[l.path], Origin: c.Origin(l.path)})
	}
	for i, n := range c.Networks {
		mtu := "derived"
		if n.MTU != 0 {
			mtu = strconv.Itoa(n.MTU)
		}
		for _, s := range []Setting{
			{Key: "name", Value: n.Name}, {Key: "vni", Value: n.VNI.String()},
			{Key: "subnets", Value: netdef.Text(n.Subnets)}, {Key: "encrypted", Value: strconv.FormatBool(n.Encrypted)},
			{Key: "mtu", Value: mtu}, {Key: "driver", Value: n.Driver},
			{Key: "gateways", Value: netdef.Text(n.Gateways)}, {Key: "ip_ranges", Value: netdef.Text(n.Ranges)}, {Key: "reserve", Value: netdef.Text(n.Reserved)},
			{Key: "internal", Value: strconv.FormatBool(n.Internal)}, {Key: "no_broadcast", Value: strconv.FormatBool(n.NoBroadcast)},
			{Key: "labels", Value: strings.Join(n.Labels, ",")},
		} {
			s.Origin = c.Origin(fmt.Sprintf("networks[%d].%s", i, s.Key))
			if s.Key == "vni" && s.Origin == OriginDefault {
				s.Origin = "derived from the name"
			}
			s.Key = fmt.Sprintf("networks[%s].%s", n.Name, s.Key)
			out = append(out, s)
		}
	}
	return out
}

func addrText(a netip.AddrPort, absent string) string {
	if !a.IsValid() {
		return absent
	}
	return a.String()
}

// Origin says where the value of a key came from; the key is a path such as
// control.bind or networks[0].vni.
func (c Config) Origin(key string) Origin {
	if o, ok := c.origins[key]; ok {
		return o
	}
	return OriginDefault
}

// IsSet reports whether somebody set the value of a key: file, environment or
// flag.
func (c Config) IsSet(key string) bool {
	o := c.Origin(key)
	return o != OriginDefault && o != originLocal
}

// originLocal marks a value that nobody set but the profile.
const originLocal Origin = "default of profile local"

// origins turns the places of all values that were set into their text form.
func (c *checker) origins() map[string]Origin {
	out := map[string]Origin{}
	for path, p := range c.place {
		if p.origin != "" {
			out[path] = p.origin
		} else {
			out[path] = Origin(fmt.Sprintf("%s:%d", p.file, p.line))
		}
	}
	return out
}

// textOf is the form in which a default stands in help texts.
func textOf(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case int64:
		return strconv.FormatInt(v, 10)
	case bool:
		return strconv.FormatBool(v)
	case time.Duration:
		return durationText(v)
	case []string:
		return strings.Join(v, ",")
	default:
		return ""
	}
}

// newProblems sorts by position: the file's problems by line, then the rest.
func newProblems(list []Problem) *Problems {
	slices.SortStableFunc(list, func(a, b Problem) int {
		if (a.File == "") != (b.File == "") {
			if a.File != "" {
				return -1
			}
			return 1
		}
		return a.Line - b.Line
	})
	return &Problems{List: list}
}

// advertiseText is the value of control.advertise as a file has it.
func advertiseText(list []netip.AddrPort) string {
	if len(list) == 0 {
		return "derived"
	}
	text := make([]string, len(list))
	for i, a := range list {
		text[i] = a.String()
	}
	return strings.Join(text, ", ")
}
