package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// startNebula starts two nodes with certificates of one authority, each with the other's address in
// its configuration, without a lighthouse.
func startNebula(ctx context.Context, p *peerPair) error {
	const port = 4242
	certify := func(args ...string) error {
		cmd := exec.CommandContext(ctx, filepath.Join(p.dir, "nebula-cert"), args...)
		cmd.Dir = p.dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nebula-cert %s: %w: %s", args[0], err, out)
		}
		return nil
	}
	if err := certify("ca", "-name", "bench"); err != nil {
		return err
	}
	for i := range p.hosts {
		name, other := fmt.Sprint("node", i), 1-i
		if err := certify("sign", "-name", name, "-ip", p.inner[i].String()); err != nil {
			return err
		}
		// 60 bytes: IPv4, UDP, Nebula's header and the tag.
		text := fmt.Sprintf(`pki: {ca: %[1]s/ca.crt, cert: %[1]s/%[2]s.crt, key: %[1]s/%[2]s.key}
static_host_map: {"%[3]s": ["%[4]s"]}
lighthouse: {am_lighthouse: false}
listen: {host: 0.0.0.0, port: %[5]d}
tun: {dev: neb0, mtu: %[6]d}
cipher: aes
firewall:
  outbound: [{port: any, proto: any, host: any}]
  inbound: [{port: any, proto: any, host: any}]
`, p.dir, name, p.inner[other].Addr(), netip.AddrPortFrom(p.hosts[other].V4(), port), port, p.mtu-60)
		if err := p.file(name+".yml", text); err != nil {
			return err
		}
		if err := p.run(ctx, i, nil, filepath.Join(p.dir, "nebula"), "-config", filepath.Join(p.dir, name+".yml")); err != nil {
			return err
		}
	}
	return nil // it gives its link the address itself
}

// startTailscale starts Tailscale's variant of wireguard-go, which its agents are built on, and
// configures it as wireguardPair does the original.
func startTailscale(ctx context.Context, p *peerPair) error {
	const port = 51820
	priv, err := keyPair()
	if err != nil {
		return err
	}
	for i, h := range p.hosts {
		other := 1 - i
		// Control sockets have the link's name, in one folder for all namespaces.
		link := fmt.Sprint("tsbench", i)
		if err := p.run(ctx, i, []string{"LOG_LEVEL=error"}, filepath.Join(p.dir, "wireguard-go"), "-f", link); err != nil {
			return err
		}
		if err := p.address(ctx, i, link, p.mtu-60); err != nil {
			return err
		}
		text := fmt.Sprintf("set=1\n%sendpoint=%s\n\n", wireguardPeer(priv[i], port, priv[other], p.inner[other].Addr()),
			netip.AddrPortFrom(p.hosts[other].V4(), port))
		if err := tellWireGuard(ctx, "/var/run/wireguard/"+link+".sock", text); err != nil {
			return fmt.Errorf("configure wireguard-go on %s: %w", h.Name(), err)
		}
	}
	return nil
}

// tellWireGuard waits for a control socket and sends a request (wireguard.com/xplatform).
func tellWireGuard(ctx context.Context, path, text string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var conn net.Conn
	for {
		var err error
		if conn, err = (&net.Dialer{}).DialContext(ctx, "unix", path); err == nil {
			break
		}
		if ctx.Err() != nil || !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte(text)); err != nil {
		return err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if strings.TrimSpace(answer) != "errno=0" {
		return errors.Join(fmt.Errorf("answer %q", answer), err)
	}
	return nil
}

// startTinc starts two nodes of one net, with the ciphers that tinc chooses.
func startTinc(ctx context.Context, p *peerPair) error {
	dir := func(i int) string { return fmt.Sprint("net", i) }
	for i, h := range p.hosts {
		name := fmt.Sprint("node", i)
		conf := fmt.Sprintf("Name = %s\nInterface = tinc0\nConnectTo = node%d\n", name, 1-i)
		public := fmt.Sprintf("Address = %s\nSubnet = %s/32\n", h.V4(), p.inner[i].Addr())
		if err := errors.Join(p.file(dir(i)+"/tinc.conf", conf), p.file(dir(i)+"/hosts/"+name, public)); err != nil {
			return err
		}
		generate := exec.CommandContext(ctx, "tincd", "-c", filepath.Join(p.dir, dir(i)), "-K2048")
		if out, err := generate.CombinedOutput(); err != nil { // no input: it takes the usual file names
			return fmt.Errorf("tincd -K: %w: %s", err, out)
		}
	}
	for i := range p.hosts {
		name := fmt.Sprint("/hosts/node", i)
		public, err := os.ReadFile(filepath.Join(p.dir, dir(i)+name))
		if err == nil {
			err = p.file(dir(1-i)+name, string(public))
		}
		if err != nil {
			return err
		}
	}
	for i := range p.hosts {
		at := filepath.Join(p.dir, dir(i))
		if err := p.run(ctx, i, nil, "tincd", "-c", at, "-D", "--pidfile="+at+"/pid"); err != nil {
			return err
		}
		if err := p.address(ctx, i, "tinc0", 0); err != nil {
			return err
		}
	}
	return nil
}
