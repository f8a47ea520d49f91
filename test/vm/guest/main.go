package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Plan is the content of /suites.json.
type Plan struct {
	Env    []string
	Suites []Suite
}

// Suite is one test binary to run.
type Suite struct {
	Name    string   // package path
	Dir     string   // working folder, with testdata
	Argv    []string // program and arguments
	Seconds int      // after which it is killed
}

func main() {
	if os.Getpid() == 1 {
		reap()
		return
	}
	err := work()
	if err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
	}
	unix.Sync()
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF); err != nil {
		fmt.Fprintln(os.Stderr, "guest: power off:", err)
	}
}

// reap starts this program again as its child and then collects ended
// processes for ever: workers that outlive their parent become ours.
func reap() {
	if err := mounts(); err != nil {
		fmt.Fprintln(os.Stderr, "guest:", err)
	}
	cmd := exec.Command("/init")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "guest: start:", err)
	}
	for {
		// ECHILD cannot come while the worker runs; it ends the machine.
		if _, err := unix.Wait4(-1, nil, 0, nil); err != nil && !errors.Is(err, unix.EINTR) {
			_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
		}
	}
}

// mounts mounts what programs expect. The root is a tmpfs already.
func mounts() error {
	for _, m := range []struct{ dir, typ, data string }{
		{"/proc", "proc", ""}, {"/sys", "sysfs", ""}, {"/dev", "devtmpfs", ""},
		{"/dev/pts", "devpts", ""}, {"/dev/shm", "tmpfs", ""},
		{"/sys/fs/cgroup", "cgroup2", ""}, {"/run", "tmpfs", ""}, {"/tmp", "tmpfs", ""},
		{"/var", "tmpfs", ""},
	} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", m.dir, err)
		}
		if err := unix.Mount(m.typ, m.dir, m.typ, 0, m.data); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	for _, dir := range []string{"/var/lib", "/var/cache", "/home"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make %s: %w", dir, err)
		}
	}
	return unix.Sethostname([]byte("vm"))
}

// work loads the modules and runs the suites.
func work() error {
	if err := loadModules(); err != nil {
		return err
	}
	if err := loopbackUp(); err != nil {
		return err
	}
	if err := raiseLimits(); err != nil {
		return err
	}
	raw, err := os.ReadFile("/suites.json")
	if err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	var plan Plan
	if err := json.Unmarshal(raw, &plan); err != nil {
		return fmt.Errorf("read plan: %w", err)
	}
	out, err := os.OpenFile("/dev/ttyS1", os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("open the second serial line: %w", err)
	}
	defer func() { _ = out.Close() }()
	env := append([]string{"PATH=/bin:/sbin", "HOME=/home"}, plan.Env...)
	for _, s := range plan.Suites {
		_, _ = fmt.Fprintf(out, "\n@@begin %s\n", s.Name)
		_, _ = fmt.Fprintf(out, "\n@@end %s %s\n", s.Name, runSuite(s, env, out))
	}
	_, _ = fmt.Fprintln(out, "@@done")
	return nil
}

// raiseLimits lets more be held before it is dropped than by default. Emulation
// is slow, and where the host gives a processor no turn for a second or two, as
// happens, every packet of that time waits in the processor's backlog, once for
// each link that it crosses.
func raiseLimits() error {
	for limit, value := range map[string]string{
		"rmem_max": "16777216", "wmem_max": "16777216", "netdev_max_backlog": "65536",
	} {
		if err := os.WriteFile("/proc/sys/net/core/"+limit, []byte(value), 0o644); err != nil {
			return fmt.Errorf("raise %s: %w", limit, err)
		}
	}
	return nil
}

// runSuite runs one test binary and describes its end in one word: "0" is success.
func runSuite(s Suite, env []string, out *os.File) string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Duration(s.Seconds)*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Argv[0], s.Argv[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = s.Dir, env, out, out
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return "0"
	case ctx.Err() != nil:
		return "timeout"
	case errors.As(err, &exit):
		return fmt.Sprint(exit.ExitCode())
	default:
		_, _ = fmt.Fprintln(out, "guest:", err)
		return "unstarted"
	}
}

// loadModules loads /modules/NNN-name.ko in the order of their names. One
// that cannot be loaded is reported and passed over: the tests that need it fail,
// and say so better.
func loadModules() error {
	files, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return fmt.Errorf("list modules: %w", err)
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return fmt.Errorf("load module: %w", err)
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			fmt.Fprintf(os.Stderr, "guest: load module %s: %v\n", strings.TrimSuffix(filepath.Base(name), ".ko"), err)
		}
	}
	return nil
}

// loopbackUp sets lo up in the machine's first network namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	req.SetUint16(unix.IFF_UP)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req); err != nil {
		return fmt.Errorf("set loopback up: %w", err)
	}
	return nil
}
