package nl

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// RouteProtocol marks our routes and addresses in the kernel (rtm_protocol,
// ifa_proto): 0x53 'S', which iproute2's rt_protos gives to nobody.
const RouteProtocol = 0x53

// Sysctl is a network setting of a namespace: a path below /proc/sys/net,
// such as "ipv6/conf/all/forwarding", and the value it has when read.
type Sysctl struct {
	Key   string
	Value string
	// Optional settings may be missing, as when a module is not loaded.
	Optional bool
}

// SetSysctls writes those settings of the namespace that differ, in order,
// and returns the keys it wrote.
func (n *Namespace) SetSysctls(want []Sysctl) ([]string, error) {
	return n.sysctls(want, true)
}

// SysctlDrift returns the keys whose value is not the wanted one.
func (n *Namespace) SysctlDrift(want []Sysctl) ([]string, error) {
	return n.sysctls(want, false)
}

func (n *Namespace) sysctls(want []Sysctl, write bool) ([]string, error) {
	var differ []string
	// /proc/sys/net shows the namespace of the thread that opens a file, so
	// Do's thread reads and writes the right one without a mount of its own.
	err := n.Do(func() error {
		for _, s := range want {
			path := filepath.Join("/proc/sys/net", s.Key)
			have, err := os.ReadFile(path)
			if errors.Is(err, os.ErrNotExist) && s.Optional {
				continue
			}
			if err != nil {
				return fmt.Errorf("read sysctl net/%s in %s: %w", s.Key, n.path, err)
			}
			if strings.TrimSpace(string(have)) == s.Value {
				continue
			}
			differ = append(differ, s.Key)
			if !write {
				continue
			}
			if err := os.WriteFile(path, []byte(s.Value), 0o644); err != nil {
				return fmt.Errorf("write sysctl net/%s in %s: %w", s.Key, n.path, err)
			}
		}
		return nil
	})
	return differ, err
}
