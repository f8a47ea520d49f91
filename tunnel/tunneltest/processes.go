package tunneltest

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Processes lists the processes that have a text on their command line.
func Processes(mark string) ([]int, error) {
	lines, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, l := range lines {
		line, err := os.ReadFile(l)
		if err != nil || !strings.Contains(string(line), mark) {
			continue // it may have ended
		}
		var pid int
		if _, err := fmt.Sscanf(l, "/proc/%d/", &pid); err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// children names this process's children, zombies with them.
func children() ([]string, error) {
	lists, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, l := range lists {
		list, err := os.ReadFile(l)
		if err != nil && !os.IsNotExist(err) { // a thread may end meanwhile
			return nil, err
		}
		for _, pid := range strings.Fields(string(list)) {
			out = append(out, "child "+pid)
		}
	}
	return out, nil
}

// WorkersLeft lists what drivers with worker processes have left of hosts: processes, zombies among
// this process's children, and files of the runtime folders and of further ones.
func WorkersLeft(hosts []*Host, further func(*Host) string) ([]string, error) {
	left, err := children()
	if err != nil {
		return nil, err
	}
	for _, h := range hosts {
		pids, err := Processes(h.Env.Node.String())
		if err != nil {
			return nil, err
		}
		for _, pid := range pids {
			left = append(left, fmt.Sprintf("process %d", pid))
		}
		patterns := []string{filepath.Join(h.Env.RuntimeDir, "*")}
		if further != nil {
			patterns = append(patterns, further(h))
		}
		for _, p := range patterns {
			files, err := filepath.Glob(p)
			if err != nil {
				return nil, err
			}
			left = append(left, files...)
		}
	}
	return left, nil
}
