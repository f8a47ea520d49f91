package tun

import (
	"fmt"
	"slices"
	"strings"

	"github.com/safchain/ethtool"
)

// limitOffload makes the kernel split and finish itself, before a link of the thread's namespace
// takes it, what a virtio header cannot describe or package gso does not split: a packet socket
// loses the first and would get the second wrong.
func limitOffload(link string) error {
	e, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("set offload of %s: %w", link, err)
	}
	defer e.Close()
	have, err := e.Features(link)
	if err != nil {
		return fmt.Errorf("read offload of %s: %w", link, err)
	}
	off := map[string]bool{}
	for name, on := range have {
		if on && !bearable(name) {
			off[name] = false
		}
	}
	if len(off) == 0 {
		return nil
	}
	if err := e.Change(link, off); err != nil {
		return fmt.Errorf("set offload of %s: %w", link, err)
	}
	return nil
}

// bearable reports whether packets may be left to package gso that a link with a feature of the kernel,
// by its name (netdev_features_strings), takes. TCP with CWR is not among them, which only one of the
// segments may keep, nor are packets whose numbers on IPv4 are all to be the same, nor SCTP.
func bearable(feature string) bool {
	gives := strings.HasPrefix(feature, "tx-gso") || strings.HasSuffix(feature, "-segmentation") || strings.Contains(feature, "sctp") || strings.Contains(feature, "fcoe")
	return !gives || slices.Contains([]string{
		"tx-generic-segmentation", // whether anything comes unsplit at all
		"tx-tcp-segmentation", "tx-tcp6-segmentation", "tx-udp-segmentation",
		"tx-udp_tnl-segmentation", "tx-udp_tnl-csum-segmentation",
	}, feature)
}
