package config

import (
	"fmt"
	"slices"
	"strings"

	"github.com/secure-overlay/secure-overlay/internal/netdef"
)

// Change is a difference between two configurations.
type Change struct {
	Key  string // control.bind, networks[blue].mtu, networks[blue]
	From string
	To   string
	Live bool // an agent takes it up while it runs
}

// absent is the value of a network that is not there.
const absent = "-"

// live lists the keys, besides networks, that an agent takes up while it runs.
func live() []string {
	return []string{"keys.rotate_every", "keys.esp_max_packets", "keys.esp_max_bytes", "log.level"}
}

// Diff lists what differs between two configurations, in the order of the file. A
// network that is new, or gone, is one change.
func Diff(was, is Config) []Change {
	before, after := was.Settings(), is.Settings()
	var out []Change
	add := func(key, from, to string) {
		out = append(out, Change{Key: key, From: from, To: to, Live: strings.HasPrefix(key, "networks[") || slices.Contains(live(), key)})
	}
	for _, s := range after {
		i := slices.IndexFunc(before, func(o Setting) bool { return o.Key == s.Key })
		if i >= 0 && before[i].Value != s.Value {
			add(s.Key, before[i].Value, s.Value)
		}
	}
	for _, n := range was.Networks {
		if _, ok := is.Network(n.Name); !ok {
			add("networks["+n.Name+"]", n.summary(), absent)
		}
	}
	for _, n := range is.Networks {
		if _, ok := was.Network(n.Name); !ok {
			add("networks["+n.Name+"]", absent, n.summary())
		}
	}
	return out
}

// summary is a network on one line.
func (n Network) summary() string {
	form := "encrypted"
	if !n.Encrypted {
		form = "PLAINTEXT"
	}
	return fmt.Sprintf("%s, %s, VNI %s", netdef.Text(n.Subnets), form, n.VNI)
}
