package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
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
		"control.bind": c.Control.Bind.String(), "control.advertise": addrText(c.Control.Advertise),
		"control.seeds": strings.Join(c.Control.Seeds, ","), "control.profile": c.Control.Profile,
		"data.port": strconv.Itoa(int(c.Data.Port)), "data.vxlan_port": strconv.Itoa(int(c.Data.VXLANPort)),
		"log.level": c.Log.Level, "log.format": c.Log.Format,
	}
	var out []Setting
	for _, l := range leaves() {
		out = append(out, Setting{Key: l.path, Value: values[l.path], Origin: c.Origin(l.path)})
	}
	for i, n := range c.Networks {
		subnets := make([]string, len(n.Subnets))
		for k, p := range n.Subnets {
			subnets[k] = p.String()
		}
		mtu := "derived"
		if n.MTU != 0 {
			mtu = strconv.Itoa(n.MTU)
		}
		for _, s := range []Setting{
			{Key: "name", Value: n.Name}, {Key: "vni", Value: n.VNI.String()},
			{Key: "subnets", Value: strings.Join(subnets, ",")}, {Key: "encrypted", Value: strconv.FormatBool(n.Encrypted)},
			{Key: "mtu", Value: mtu}, {Key: "driver", Value: n.Driver},
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

func addrText(a netip.AddrPort) string {
	if !a.IsValid() {
		return "derived"
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
