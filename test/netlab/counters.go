package netlab

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// TCPTimeouts is the counter of retransmission timeouts: a sender waited for an
// acknowledgement until its timer ran out, and then slowed down to nothing.
const TCPTimeouts = "TcpExt.TCPTimeouts"

// Counters returns a namespace's counters of IP, ICMP, UDP and TCP, named as in
// /proc/net/snmp and /proc/net/netstat with their protocol in front:
// "Udp.RcvbufErrors". They count since the namespace was made.
func Counters(ns *nl.Namespace) (map[string]int64, error) {
	all := make(map[string]int64)
	err := ns.Do(func() error {
		for _, file := range []string{"snmp", "netstat"} {
			raw, err := os.ReadFile(threadNet(file))
			if err != nil {
				return err
			}
			if err := parsePairedLines(string(raw), all); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	return all, nil
}

// XfrmCounters returns the counters of /proc/net/xfrm_stat: packets that ESP
// refused, by reason, such as XfrmInStateSeqError for a replayed one
// (Documentation/networking/xfrm_proc.rst). A kernel that does not count them
// gives an error that is fs.ErrNotExist.
func XfrmCounters(ns *nl.Namespace) (map[string]int64, error) {
	all := make(map[string]int64)
	err := ns.Do(func() error {
		raw, err := os.ReadFile(threadNet("xfrm_stat"))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(raw)) {
			f := strings.Fields(line)
			if len(f) != 2 {
				continue
			}
			if all[f[0]], err = strconv.ParseInt(f[1], 10, 64); err != nil {
				return fmt.Errorf("xfrm_stat: %w", err)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read counters: %w", err)
	}
	return all, nil
}

// threadNet is a file of the calling thread's namespace; /proc/net would be
// that of the process's first thread.
func threadNet(file string) string { return "/proc/thread-self/net/" + file }

// parsePairedLines reads the format of snmp and netstat: a line of names, then a
// line of values, both after the protocol's name and a colon.
func parsePairedLines(text string, into map[string]int64) error {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if len(lines)%2 != 0 {
		return fmt.Errorf("%d lines, want pairs", len(lines))
	}
	for i := 0; i < len(lines); i += 2 {
		names, values := strings.Fields(lines[i]), strings.Fields(lines[i+1])
		if len(names) != len(values) || names[0] != values[0] {
			return fmt.Errorf("lines %d and %d do not belong together", i+1, i+2)
		}
		for k := 1; k < len(names); k++ {
			v, err := strconv.ParseInt(values[k], 10, 64)
			if err != nil {
				// Counters of 64 bits that passed the middle of their range.
				u, uerr := strconv.ParseUint(values[k], 10, 64)
				if uerr != nil {
					return err
				}
				v = int64(u)
			}
			into[strings.TrimSuffix(names[0], ":")+"."+names[k]] = v
		}
	}
	return nil
}

// Grown returns the counters that are larger now than before, by how much.
func Grown(before, now map[string]int64) map[string]int64 {
	grown := make(map[string]int64)
	for name, v := range now {
		if d := v - before[name]; d > 0 {
			grown[name] = d
		}
	}
	return grown
}
