package resolver

import (
	"net/netip"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// HostFile is where a host says which resolvers it asks (resolv.conf(5)).
const HostFile = "/etc/resolv.conf"

// FromFile returns the resolvers that a file in the form of resolv.conf(5) names, for
// Options.Upstreams. A changed file counts from its next question on. One that
// cannot be read names none.
func FromFile(path string) func() []netip.AddrPort {
	f := &hostFile{path: path}
	return f.resolvers
}

type hostFile struct {
	path string

	mu       sync.Mutex // guards all below
	modified time.Time
	size     int64
	have     []netip.AddrPort
}

func (f *hostFile) resolvers() []netip.AddrPort {
	info, err := os.Stat(f.path)
	if err != nil {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if info.ModTime().Equal(f.modified) && info.Size() == f.size {
		return f.have
	}
	c, err := dns.ClientConfigFromFile(f.path)
	if err != nil {
		return nil
	}
	var list []netip.AddrPort
	for _, s := range c.Servers {
		a, err := netip.ParseAddr(s)
		p, perr := strconv.ParseUint(c.Port, 10, 16)
		if err == nil && perr == nil && !a.IsUnspecified() {
			list = append(list, netip.AddrPortFrom(a.Unmap(), uint16(p)))
		}
	}
	f.modified, f.size, f.have = info.ModTime(), info.Size(), list
	return list
}
