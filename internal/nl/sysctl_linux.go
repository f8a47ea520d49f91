package nl

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
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
			path := "/proc/sys/net/" + s.Key
			have, err := readSmall(path)
			if errors.Is(err, os.ErrNotExist) && s.Optional {
				continue
			}
			if err != nil {
				return fmt.Errorf("read sysctl net/%s in %s: %w", s.Key, n.path, err)
			}
			if strings.TrimSpace(have) == s.Value {
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

// readSmall reads a file of /proc with three system calls. The agent compares
// dozens of settings each second, and os.ReadFile needs three times as many.
func readSmall(path string) (string, error) {
	var fd int
	err := retry(func() (err error) {
		fd, err = unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return "", &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer func() { _ = unix.Close(fd) }()
	buf := make([]byte, 256)
	var n int
	err = retry(func() (err error) {
		n, err = unix.Read(fd, buf)
		return err
	})
	if err != nil {
		return "", &os.PathError{Op: "read", Path: path, Err: err}
	}
	return string(buf[:n]), nil
}

// retry repeats a system call that a signal has interrupted.
func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}
