package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"sync"

	"github.com/vishvananda/netlink"

	"github.com/secure-overlay/secure-overlay/internal/nl"
)

// bridgeName is the bridge inside the switch namespace.
const bridgeName = "sw0"

var (
	prefix4 = netip.MustParsePrefix("198.18.0.0/16")
	prefix6 = netip.MustParsePrefix("fd00:198:18::/64")
	nameRE  = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,30}$`)
)

// Lab is one switch and what is plugged into it. Its methods may be called
// from several goroutines; Close must be the last call.
type Lab struct {
	name string
	dir  string
	sw   *Box

	mu       sync.Mutex // guards what follows
	boxes    map[string]*Box
	hosts    []*Host
	captures []*Captures
	nextHost int
}

// New makes an empty lab: a switch namespace with a bridge. The name appears
// in the folder under the system's temporary directory that holds the
// namespaces' bind mounts; two labs may have the same name. The caller calls
// Close, also when later calls fail.
func New(name string) (*Lab, error) {
	if !nameRE.MatchString(name) {
		return nil, fmt.Errorf("make lab %q: the name must be lower-case letters, digits and dashes", name)
	}
	dir, err := os.MkdirTemp("", "netlab-"+name+"-")
	if err != nil {
		return nil, fmt.Errorf("make lab %s: %w", name, err)
	}
	l := &Lab{name: name, dir: dir, boxes: make(map[string]*Box)}
	if err := l.addSwitch(); err != nil {
		return nil, errors.Join(fmt.Errorf("make lab %s: %w", name, err), l.Close())
	}
	return l, nil
}

func (l *Lab) addSwitch() error {
	sw, err := l.addBox("switch")
	if err != nil {
		return err
	}
	l.sw = sw
	// The switch is a wire, not a host: no IPv6 of its own, so that nothing
	// but the hosts' packets is seen on its ports.
	if err := sw.Sysctl("net/ipv6/conf/default/disable_ipv6", "1"); err != nil {
		return err
	}
	h, err := sw.ns.Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	off := false
	br := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs(), MulticastSnooping: &off}
	br.Name = bridgeName
	if err := h.LinkAdd(br); err != nil {
		return fmt.Errorf("add bridge %s: %w", bridgeName, err)
	}
	return linkUp(h, bridgeName)
}

// Name returns the name given to New.
func (l *Lab) Name() string { return l.name }

// Dir returns the lab's folder. Callers may keep files of their own in it;
// Close removes it.
func (l *Lab) Dir() string { return l.dir }

// Switch returns the namespace of the bridge, to which every host's wire leads.
func (l *Lab) Switch() *Box { return l.sw }

// Container makes a bare namespace: only a loopback link, which is up.
func (l *Lab) Container(name string) (*Box, error) { return l.addBox(name) }

// addBox makes a namespace with its loopback link up and registers it.
func (l *Lab) addBox(name string) (*Box, error) {
	if !nameRE.MatchString(name) {
		return nil, fmt.Errorf("add namespace %q: the name must be lower-case letters, digits and dashes", name)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.boxes[name]; ok {
		return nil, fmt.Errorf("add namespace %s: %w", name, os.ErrExist)
	}
	path := filepath.Join(l.dir, "netns", name)
	ns, err := nl.CreateNamespace(path)
	if err != nil {
		return nil, err
	}
	b := &Box{name: name, path: path, ns: ns}
	if err := b.prepare(); err != nil {
		return nil, errors.Join(fmt.Errorf("add namespace %s: %w", name, err), ns.Close(), nl.RemoveNamespace(path))
	}
	l.boxes[name] = b
	return b, nil
}

// Remove ends one host or container before the lab's end: its processes are
// killed, its links go with its namespace.
func (l *Lab) Remove(b *Box) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.boxes[b.name] != b {
		return fmt.Errorf("remove namespace %s: %w", b.name, os.ErrNotExist)
	}
	delete(l.boxes, b.name)
	for i, h := range l.hosts {
		if h.Box == b {
			l.hosts = append(l.hosts[:i], l.hosts[i+1:]...)
			break
		}
	}
	return b.remove()
}

// Close ends the lab: captures stop, every process that runs in one of its
// namespaces is killed, and namespaces with their links and the folder are
// removed. A second Close does nothing.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.captures {
		c.Stop()
	}
	l.captures = nil
	var errs []error
	for i := len(l.hosts) - 1; i >= 0; i-- {
		errs = append(errs, l.closeBox(l.hosts[i].Box))
	}
	l.hosts = nil
	for _, b := range l.boxes {
		if b != l.sw {
			errs = append(errs, l.closeBox(b))
		}
	}
	if l.sw != nil {
		errs = append(errs, l.closeBox(l.sw))
		l.sw = nil
	}
	errs = append(errs, os.RemoveAll(l.dir))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("close lab %s: %w", l.name, err)
	}
	return nil
}

// closeBox removes b once; l.mu is held.
func (l *Lab) closeBox(b *Box) error {
	if l.boxes[b.name] != b {
		return nil
	}
	delete(l.boxes, b.name)
	return b.remove()
}

// linkUp sets a link up.
func linkUp(h *nl.Handle, name string) error {
	link, err := h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}
