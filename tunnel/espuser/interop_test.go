package espuser_test

import (
	"testing"

	"github.com/secure-overlay/secure-overlay/test/netlab"
	"github.com/secure-overlay/secure-overlay/tunnel/espuser"
	"github.com/secure-overlay/secure-overlay/tunnel/ipsec"
	"github.com/secure-overlay/secure-overlay/tunnel/tunneltest"
)

// kernelOptions are those of the kernel's ESP, where pairs choose its form.
func kernelOptions() ipsec.Options {
	return ipsec.Options{Encap: ipsec.EncapAuto, Worker: []string{"/proc/self/exe", holderWord}}
}

// TestKernelIsPeer: nodes with this driver and with the kernel's ESP are peers, whoever has the
// lower ID. It needs a kernel with ESP. Where the machine has none, test/vm runs it in a virtual
// machine.
func TestKernelIsPeer(t *testing.T) {
	netlab.Require(t, netlab.FeatureXfrm)
	kernel, user := ipsec.Kind(kernelOptions()), espuser.Kind(options())
	t.Run("user first", func(t *testing.T) {
		tunneltest.Interoperate(t, tunneltest.Harness{
			Kind: user, Hosts: tunneltest.Namespaces, Keyless: true, InUDP: true, Marks: true, Leftovers: leftovers,
			Other: &tunneltest.Other{Kind: kernel, NoPort: true},
		})
	})
	t.Run("kernel first", func(t *testing.T) {
		tunneltest.Interoperate(t, tunneltest.Harness{
			Kind: kernel, NoPort: true, Hosts: tunneltest.Namespaces, Keyless: true, InUDP: true, Marks: true, Leftovers: leftovers,
			Other: &tunneltest.Other{Kind: user},
		})
	})
}
