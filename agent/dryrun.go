package agent

import (
	"fmt"
	"path/filepath"

	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

// DryRun lists the kernel objects that Run would make, one line each. It is
// pure; node may be zero if the identity does not exist yet.
func DryRun(cfg config.Config, node ids.NodeID) []string {
	dir := files{dir: cfg.RuntimeDir}
	device, inner := "so<node>a1", "<inner address>"
	if !node.IsZero() {
		device, inner = tunnel.DeviceName(node, 1, lane), node.InnerAddr().String()
	}
	out := []string{
		fmt.Sprintf("control port %s, TCP and UDP", cfg.Control.Bind),
		fmt.Sprintf("network namespace %s, with %s on lo, an unreachable default route and table inet secure_overlay", dir.securePath(), inner),
	}
	if cfg.AnyEncrypted() {
		out = append(out, fmt.Sprintf("tunnel device %s in it (driver %s), UDP port %d in the host namespace; while keys rotate, up to two more on ports %d and %d",
			device, cfg.Driver(), cfg.Data.Port, cfg.Data.Port+1, cfg.Data.Port+2))
	}
	for _, n := range cfg.Networks {
		born := "the secure namespace: encrypted"
		if !n.Encrypted {
			born = "the host namespace: PLAINTEXT"
		}
		out = append(out, fmt.Sprintf("network %s: namespace %s, bridge, VXLAN device with VNI %s and UDP port %d born in %s",
			n.Name, filepath.Join(dir.dir, netnsDir, "net-"+n.Name), n.VNI, cfg.Data.VXLANPort, born))
	}
	return out
}
