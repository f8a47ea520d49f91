package main

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/secure-overlay/secure-overlay/api"
)

// netDesk takes requests about networks.
type netDesk struct {
	asked   []api.NetworkRequest
	removed []string
	updates []api.NetworkUpdate
	update  func(api.NetworkUpdate)       // sees each; nil: nobody does
	states  func(name string) api.Network // what the network is; after an update by name
	refusal error
}

func (d *netDesk) CreateNetwork(_ context.Context, req api.NetworkRequest) (api.Network, error) {
	d.asked = append(d.asked, req)
	var subnets []netip.Prefix
	for _, s := range req.Subnets {
		subnets = append(subnets, netip.MustParsePrefix(s))
	}
	return api.Network{Name: req.Name, VNI: 7, Subnets: subnets, Encrypted: !req.Plaintext, State: api.StateUnused, Cluster: true}, d.refusal
}

func (d *netDesk) UpdateNetwork(_ context.Context, name string, req api.NetworkUpdate) (api.Network, error) {
	d.updates = append(d.updates, req)
	if d.refusal != nil {
		return api.Network{}, d.refusal
	}
	if d.update != nil {
		d.update(req)
	}
	return d.states(name), nil
}

func (d *netDesk) RemoveNetwork(_ context.Context, name string, force bool) error {
	if force {
		name += "!"
	}
	d.removed = append(d.removed, name)
	return d.refusal
}

func TestNetworkCreate(t *testing.T) {
	d := &netDesk{}
	c := canned{definer: d, status: api.Status{Networks: []api.Network{{
		Name: "green", VNI: 7, Subnets: []netip.Prefix{netip.MustParsePrefix("10.99.0.0/16")}, Encrypted: true, State: api.StateUnused, Cluster: true,
	}}}}
	for args, want := range map[string]string{
		"network create green --subnet 10.99.0.0/16":                    "network green of 10.99.0.0/16 is there, encrypted, VNI 7\n",
		"network create green --subnet 10.99.0.0/16 --plaintext":        "network green of 10.99.0.0/16 is there, PLAINTEXT, VNI 7\n",
		"network create green --subnet 10.99.0.0/16 --encrypted":        "network green of 10.99.0.0/16 is there, encrypted, VNI 7\n",
		"network create green --subnet 10.99.0.0/16,fd99::/64 --vni 7":  "network green of 10.99.0.0/16, fd99::/64 is there, encrypted, VNI 7\n",
		"network create green --subnet 10.99.0.0/16 --encrypted=ipsec":  "network green of 10.99.0.0/16 is there, encrypted, VNI 7\n",
		"network create green --subnet 10.99.0.0/16 --mtu 1300 -o json": "{",
		"network create green --subnet 10.99.0.0/16 --ip-range 10.99.4.0/24 --gateway 10.99.0.9 --reserve 10.99.0.10 --internal --no-broadcast --label a=b": "network green",
	} {
		if got := against(t, c, strings.Fields(args)...); got.code != 0 || !strings.HasPrefix(got.out, want) {
			t.Errorf("%s: exit code %d\n%s%s", args, got.code, got.out, got.err)
		}
	}
	if !slices.ContainsFunc(d.asked, func(r api.NetworkRequest) bool { return r.Driver == "ipsec" }) ||
		!slices.ContainsFunc(d.asked, func(r api.NetworkRequest) bool { return r.Plaintext }) ||
		!slices.ContainsFunc(d.asked, func(r api.NetworkRequest) bool { return r.MTU == 1300 }) ||
		!slices.ContainsFunc(d.asked, func(r api.NetworkRequest) bool {
			return r.Internal && r.NoBroadcast && slices.Equal(r.Ranges, []string{"10.99.4.0/24"}) && slices.Equal(r.Gateways, []string{"10.99.0.9"}) &&
				slices.Equal(r.Reserved, []string{"10.99.0.10"}) && slices.Equal(r.Labels, []string{"a=b"})
		}) {
		t.Errorf("the agent was asked %+v", d.asked)
	}
	for args, code := range map[string]int{
		"network create green": 2,
		"network create green --subnet 10.99.0.0/16 --plaintext --encrypted": 2,
		"network create --subnet 10.99.0.0/16":                               2,
	} {
		if got := against(t, c, strings.Fields(args)...); got.code != code || got.err == "" {
			t.Errorf("%s: exit code %d\n%s", args, got.code, got.err)
		}
	}
	for _, args := range []string{"network rm green", "network rm green --force"} {
		if got := against(t, c, strings.Fields(args)...); got.code != 0 {
			t.Errorf("%s: %s", args, got.err)
		}
	}
	if !slices.Equal(d.removed, []string{"green", "green!"}) {
		t.Errorf("removed %v", d.removed)
	}
	got := against(t, c, "network", "ls")
	if !strings.Contains(got.out, "not on this node") || !strings.Contains(got.out, "encrypted") {
		t.Errorf("the list is\n%s", got.out)
	}
	if got := against(t, c, "network", "inspect", "green"); got.code != 0 || !strings.Contains(got.out, "defined     in the cluster\n") {
		t.Errorf("%d\n%s%s", got.code, got.out, got.err)
	}
	refused := canned{definer: &netDesk{refusal: api.NewError(api.CodeRefused, "network green is in use on web-1", "--force")}}
	if got := against(t, refused, "network", "rm", "green"); got.code != 6 || !strings.Contains(got.err, "web-1") {
		t.Errorf("%d %s", got.code, got.err)
	}
}
