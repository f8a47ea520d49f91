package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/nl"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// peer is somebody else's program, measured at what it carries: layer 3. It comes from a package,
// as its users get it.
type peer struct {
	name    string // of the set-up, and for -peers in lower case up to the comma
	modules []string
	debian  string
	start   func(ctx context.Context, p *peerPair) error
}

// peers are those that ours is compared with. Modules are built in versions that were the
// newest when they were written here.
func allPeers() []peer {
	return []peer{
		{name: "Nebula, layer 3", start: startNebula, modules: []string{
			"github.com/slackhq/nebula/cmd/nebula@v1.9.5", "github.com/slackhq/nebula/cmd/nebula-cert@v1.9.5",
		}},
		{name: "Tailscale, layer 3", start: startTailscale, modules: []string{
			"github.com/tailscale/wireguard-go@v0.0.0-20250716170648-1d0488a3d7da",
		}},
		{name: "tinc, layer 3", start: startTinc, debian: "tinc"},
	}
}

func (p peer) word() string {
	word, _, _ := strings.Cut(p.name, ",")
	return strings.ToLower(word)
}

// peerPair is two hosts with a peer's program on each.
type peerPair struct {
	dir   string // of the programs and of all files
	hosts [2]*netlab.Host
	inner [2]netip.Prefix
	mtu   int // of the underlay
}

// startPeers adds a set-up for each of the peers in want, a list of words. One that cannot be had
// or does not start is left out, and said so.
func startPeers(ctx context.Context, lab *netlab.Lab, want string, mtu int) (out []*variant, err error) {
	for i, p := range allPeers() {
		if !strings.Contains(","+want+",", ","+p.word()+",") {
			continue
		}
		fmt.Fprintln(os.Stderr, ".. get and start", p.word())
		v, err := p.set(ctx, lab, i, mtu)
		if ctx.Err() != nil {
			return out, ctx.Err()
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, ".. %s is left out: %v\n", p.word(), err)
			continue
		}
		out = append(out, v)
	}
	return out, nil
}

func (p peer) set(ctx context.Context, lab *netlab.Lab, i, mtu int) (*variant, error) {
	pair := &peerPair{dir: filepath.Join(lab.Dir(), p.word()), mtu: mtu}
	if err := os.Mkdir(pair.dir, 0o700); err != nil {
		return nil, err
	}
	if err := p.get(ctx, pair.dir); err != nil {
		return nil, err
	}
	for k := range pair.hosts {
		var err error
		if pair.hosts[k], err = lab.Host(fmt.Sprintf("p%d%c", i, 'a'+k), netlab.WithMTU(mtu)); err != nil {
			return nil, err
		}
		pair.inner[k] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 97, byte(i), byte(k + 1)}), 24)
	}
	if err := p.start(ctx, pair); err != nil {
		return nil, err
	}
	v := &variant{name: p.name, from: pair.hosts[0].NS(), to: pair.hosts[1].NS(), dst: pair.inner[1].Addr(), hosts: pair.hosts[:]}
	return v, v.answers(ctx)
}

// get puts a peer's programs into dir, or finds them on the machine.
func (p peer) get(ctx context.Context, dir string) error {
	for _, m := range p.modules {
		build := exec.CommandContext(ctx, "go", "install", m)
		build.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=")
		if out, err := build.CombinedOutput(); err != nil {
			return fmt.Errorf("go install %s: %w: %s", m, err, out)
		}
	}
	if p.debian == "" {
		return nil
	}
	if _, err := exec.LookPath(p.debian + "d"); err != nil {
		return fmt.Errorf("%w (apt-get install %s)", err, p.debian)
	}
	return nil
}

// answers waits until the way is there.
func (v *variant) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		r, err := netlab.Ping(ctx, v.from, v.dst, netlab.PingOptions{Count: 3, Interval: 100 * time.Millisecond})
		if err == nil && len(r.RTTs) > 0 {
			return nil
		}
		if ctx.Err() != nil {
			return errors.Join(fmt.Errorf("%s does not answer within 20 s", v.dst), err)
		}
	}
}

// run starts a program in the background; it ends with the lab at the latest. What it says goes to
// a file.
func (p *peerPair) run(ctx context.Context, i int, env []string, program string, args ...string) error {
	log, err := os.Create(filepath.Join(p.dir, fmt.Sprintf("log%d", i)))
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the program has its own
	cmd := p.hosts[i].Command(ctx, program, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = ownSession()
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // so that it is no zombie
	return nil
}

// address waits for the link that a program makes, and gives it its address and, not zero, an MTU.
func (p *peerPair) address(ctx context.Context, i int, link string, mtu int) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	h, err := p.hosts[i].NS().Handle()
	if err != nil {
		return err
	}
	defer h.Close()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		l, err := h.LinkByName(link)
		if err == nil {
			if mtu != 0 {
				err = h.LinkSetMTU(l, mtu)
			}
			return errors.Join(err, p.hosts[i].Address(link, p.inner[i]))
		}
		if !nl.IsNotExist(err) {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			said, _ := os.ReadFile(filepath.Join(p.dir, fmt.Sprintf("log%d", i)))
			return fmt.Errorf("no link %s after 20 s; the program said: %s", link, said)
		}
	}
}

// file writes a file below the pair's folder.
func (p *peerPair) file(name, text string) error {
	path := filepath.Join(p.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(text), 0o600)
}
