package e2e

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/test/fleet"
	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// resolverIn asks a resolver from inside a container.
func resolverIn(box *netlab.Box, at netip.Addr) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (c net.Conn, err error) {
		err = box.NS().Do(func() error {
			var d net.Dialer
			c, err = d.DialContext(ctx, network[:3], netip.AddrPortFrom(at, 53).String())
			return err
		})
		return c, err
	}}
}

// TestNames: endpoints are found by name and by service from everywhere in their
// network, and nowhere else, on both families, whichever node answers.
func TestNames(t *testing.T) {
	ctx, f := start(t, 2, bothNetworks())
	one := attach(t, ctx, f, f.Nodes[0], "blue", "--name", "web-1", "--service", "web,shop")
	two := attach(t, ctx, f, f.Nodes[1], "blue", "--name", "web-2", "--service", "web")
	lab := attach(t, ctx, f, f.Nodes[0], "lab")
	if err := errors.Join(f.WaitEndpoints(ctx, "blue", 2), f.WaitConnected(ctx)); err != nil {
		t.Fatal(err)
	}
	if len(one.Endpoint.Resolvers) != 2 || lab.Endpoint.Name == "" {
		t.Errorf("%+v, %+v", one.Endpoint, lab.Endpoint)
	}
	// finds waits until a name stands for exactly these addresses; none: it is not known.
	finds := func(from fleet.Attached, resolver netip.Addr, name string, want ...netip.Addr) {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		again := time.NewTicker(20 * time.Millisecond)
		defer again.Stop()
		slices.SortFunc(want, netip.Addr.Compare)
		for {
			got, err := resolverIn(from.Box, resolver).LookupNetIP(ctx, "ip", name+".")
			var unknown *net.DNSError
			none := errors.As(err, &unknown) && unknown.IsNotFound
			for i := range got {
				got[i] = got[i].Unmap()
			}
			slices.SortFunc(got, netip.Addr.Compare)
			if len(want) == 0 && none || len(want) > 0 && slices.Equal(got, want) {
				return
			}
			select {
			case <-again.C:
			case <-ctx.Done():
				t.Fatalf("%s, asked for from %s at %s: %v, %v, want %v", name, from.Box.Name(), resolver, got, err, want)
			}
		}
	}
	for _, from := range []fleet.Attached{one, two} {
		for _, r := range from.Endpoint.Resolvers {
			finds(from, r, "web-1.blue.overlay", one.V4(), one.V6())
			finds(from, r, "WEB-2.Blue.overlay", two.V4(), two.V6())
			finds(from, r, "web.blue.overlay", one.V4(), one.V6(), two.V4(), two.V6())
			finds(from, r, "shop.blue.overlay", one.V4(), one.V6())
			finds(from, r, "nobody.blue.overlay")
			finds(from, r, lab.Endpoint.Name+".lab.overlay")
		}
	}
	finds(lab, lab.Endpoint.Resolvers[0], lab.Endpoint.Name+".lab.overlay", lab.V4(), lab.V6())
	finds(lab, lab.Endpoint.Resolvers[0], "web-1.blue.overlay")
	names, err := resolverIn(two.Box, two.Endpoint.Resolvers[0]).LookupAddr(ctx, one.V4().String())
	if err != nil || !slices.Equal(names, []string{"web-1.blue.overlay."}) {
		t.Errorf("name of %s: %v, %v", one.V4(), names, err)
	}
	list, err := f.Nodes[1].CLI(ctx, "endpoint", "ls")
	if err != nil || !strings.Contains(string(list), "web-1") {
		t.Errorf("%s, %v", list, err)
	}

	// Who is gone is not found any more, and an agent that starts again answers.
	if _, err := f.Nodes[1].CLI(ctx, "detach", two.Endpoint.ID); err != nil {
		t.Fatal(err)
	}
	finds(one, one.Endpoint.Resolvers[0], "web-2.blue.overlay")
	finds(one, one.Endpoint.Resolvers[0], "web.blue.overlay", one.V4(), one.V6())
	if err := f.Nodes[0].Kill(); err != nil {
		t.Fatal(err)
	}
	if err := f.Nodes[0].Up(ctx); err != nil {
		t.Fatal(err)
	}
	finds(one, one.Endpoint.Resolvers[0], "web.blue.overlay", one.V4(), one.V6())
}
