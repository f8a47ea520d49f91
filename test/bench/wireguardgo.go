package main

import (
	"bufio"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// wireguardGo is the worker: stock wireguard-go at layer 3 with all its
// offloads, in the namespace it was started in. Its configuration comes on
// standard input, up to an empty line; it ends with its input.
func wireguardGo(_ context.Context, args []string) error {
	if len(args) != 2 {
		return errors.New("want a link name and an MTU")
	}
	var mtu int
	if _, err := fmt.Sscan(args[1], &mtu); err != nil {
		return err
	}
	in := bufio.NewReader(os.Stdin)
	var uapi strings.Builder
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return fmt.Errorf("read configuration: %w", err)
		}
		if line == "\n" {
			break
		}
		uapi.WriteString(line)
	}
	t, err := tun.CreateTUN(args[0], mtu)
	if err != nil {
		return err
	}
	dev := device.NewDevice(t, conn.NewDefaultBind(), device.NewLogger(device.LogLevelError, args[0]))
	defer dev.Close()
	if err := dev.IpcSet(uapi.String()); err != nil {
		return err
	}
	if err := dev.Up(); err != nil {
		return err
	}
	fmt.Println("ready")
	_, err = io.Copy(io.Discard, in)
	return err
}

// wireguardPair starts two workers on hosts of their own and returns the way
// between them.
func wireguardPair(ctx context.Context, lab *netlab.Lab, mtu int) (*variant, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var hosts [2]*netlab.Host
	for i := range hosts {
		if hosts[i], err = lab.Host(fmt.Sprintf("wg%d", i+1), netlab.WithMTU(mtu)); err != nil {
			return nil, err
		}
	}
	priv, err := keyPair()
	if err != nil {
		return nil, err
	}
	const port = 51820
	addr := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 99, 0, byte(i + 1)}) }
	for i, h := range hosts {
		other := 1 - i
		text := wireguardPeer(priv[i], port, priv[other], addr(other))
		if i == 0 { // one initiator
			text += fmt.Sprintf("endpoint=%s\npersistent_keepalive_interval=10\n", netip.AddrPortFrom(hosts[other].V4(), port))
		}
		if err := startWorker(ctx, h, self, text+"\n", mtu-60); err != nil {
			return nil, err
		}
		if err := h.Address("wg0", netip.PrefixFrom(addr(i), 24)); err != nil {
			return nil, err
		}
	}
	v := &variant{name: wgName, from: hosts[0].NS(), to: hosts[1].NS(), dst: addr(1), hosts: hosts[:]}
	return v, v.answers(ctx) // or the first round would measure the handshake
}

// keyPair makes the keys of two nodes.
func keyPair() (priv [2]*ecdh.PrivateKey, err error) {
	for i := range priv {
		if priv[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return priv, err
		}
	}
	return priv, nil
}

// wireguardPeer is the configuration of a node with one peer (wireguard.com/xplatform), yet without
// where that is.
func wireguardPeer(own *ecdh.PrivateKey, port int, peer *ecdh.PrivateKey, inner netip.Addr) string {
	return fmt.Sprintf("private_key=%s\nlisten_port=%d\npublic_key=%s\nallowed_ip=%s/32\n",
		hex.EncodeToString(own.Bytes()), port, hex.EncodeToString(peer.PublicKey().Bytes()), inner)
}

// ownSession gives a program a session of its own, as ours and services have: Linux may share the
// processors out between sessions, not threads (sched_autogroup_enabled, sched(7)).
func ownSession() *unix.SysProcAttr { return &unix.SysProcAttr{Setsid: true} }

// startWorker starts a worker and waits until its link exists. The worker
// ends with the lab at the latest.
func startWorker(ctx context.Context, h *netlab.Host, self, text string, mtu int) error {
	cmd := h.Command(ctx, self, "wireguard-go", "wg0", fmt.Sprint(mtu))
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = ownSession()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if _, err := io.WriteString(stdin, text); err != nil {
		return err
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		return fmt.Errorf("start wireguard-go on %s: %q, %w", h.Name(), line, err)
	}
	return nil
}
