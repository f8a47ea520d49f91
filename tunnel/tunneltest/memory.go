package tunneltest

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strings"
)

// Needle is something to look for in the memory of a process, which may be the
// one that looks: a Needle itself is not found.
type Needle struct{ hidden []byte }

// needleMask changes each byte of a needle, so that it is not what it looks for.
const needleMask = 0xa5

// NewNeedle makes a needle of at least 16 bytes. The caller clears b.
func NewNeedle(b []byte) Needle {
	n := Needle{hidden: make([]byte, len(b))}
	for i := range b {
		n.hidden[i] = b[i] ^ needleMask
	}
	return n
}

// CountIn returns how often the needle is in the writable memory of a process.
// It needs root for others than its own.
func (n Needle) CountIn(pid int) (int, error) {
	maps, err := os.Open(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return 0, err
	}
	defer func() { _ = maps.Close() }()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		return 0, err
	}
	defer func() { _ = mem.Close() }()
	total := 0
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to uint64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil {
			return 0, err
		}
		if strings.HasPrefix(mode, "rw") {
			total += n.countBetween(mem, from, to)
		}
	}
	return total, nil
}

// countBetween searches a range of addresses. What cannot be read is not
// there, such as a region that has gone since.
func (n Needle) countBetween(mem *os.File, from, to uint64) int {
	const chunk = 1 << 20
	buf := make([]byte, chunk)
	total := 0
	for at := from; at < to; at += chunk - uint64(len(n.hidden)) + 1 {
		got, _ := mem.ReadAt(buf[:min(chunk, to-at)], int64(at))
		total += n.countIn(buf[:got])
		clear(buf) // it may be in the range itself
	}
	return total
}

func (n Needle) countIn(b []byte) int {
	total := 0
	first := n.hidden[0] ^ needleMask
	for {
		i := bytes.IndexByte(b, first)
		if i < 0 || len(b)-i < len(n.hidden) {
			return total
		}
		if n.at(b[i:]) {
			total++
		}
		b = b[i+1:]
	}
}

func (n Needle) at(b []byte) bool {
	for i, c := range n.hidden {
		if b[i] != c^needleMask {
			return false
		}
	}
	return true
}
