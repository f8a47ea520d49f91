package agent

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/secure-overlay/secure-overlay/api"
)

// TestAttachHost: the host is an endpoint like others, under a name that says what it
// is, unless the network would lead its own traffic into itself.
func TestAttachHost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		long := fileNet("a-very-long-name", 98, true, "10.98.0.0/16")
		around := fileNet("around", 97, true, netip.PrefixFrom(v4(1).Addr(), 24).Masked().String())
		m, other := w.machine(1, blue(), long, around), w.machine(2, blue(), long, around)
		m.start()
		other.start()
		host := func(req api.AttachRequest) (api.Endpoint, error) {
			req.Host = true
			return m.agent.Attach(context.Background(), req)
		}
		at, err := host(api.AttachRequest{Network: "blue"})
		if err != nil || at.Ifname != "so-blue" {
			t.Fatalf("%+v, %v", at, err)
		}
		if again, err := host(api.AttachRequest{Network: "blue"}); err != nil || again.ID != at.ID {
			t.Errorf("once more: %+v, %v", again, err)
		}
		if at, err := host(api.AttachRequest{Network: "a-very-long-name"}); err != nil || at.Ifname != "so-a-very-long-" {
			t.Errorf("%+v, %v", at, err)
		}
		if _, err := host(api.AttachRequest{Network: "around"}); api.CodeOf(err) != api.CodeRefused || !strings.Contains(err.Error(), "would lead into the network") {
			t.Errorf("a network around the host's own address: %v", err)
		}
	})
}
