package worker

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// hide keeps the keys in this process's memory out of reach: no core file, no
// ptrace and no /proc/PID/mem for processes without CAP_SYS_PTRACE.
func hide() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("switch off core dumps: %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("switch off core dumps: %w", err)
	}
	return nil
}
