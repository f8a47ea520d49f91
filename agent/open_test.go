package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/api"
	"github.com/secure-overlay/secure-overlay/config"
	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/tunnel"
)

func fakeKind(name string, err error) tunnel.Kind {
	k := tunnel.Kind{Name: name, Probe: func(context.Context, tunnel.Env) error { return err }, Compatible: "wireguard"}
	switch name {
	case config.DriverIPsec:
		k.Compatible = "esp"
		return k
	case config.DriverIPsecUser:
		k.Compatible = "esp-udp"
	}
	k.Auto = func() error { return nil }
	return k
}

// TestChooseDriver: the order of the table decides for auto; an explicit
// driver is taken or refused, and never stands for a network of another.
func TestChooseDriver(t *testing.T) {
	missing := &tunnel.UnsupportedError{Driver: "wireguard", Feature: "kernel WireGuard (CONFIG_WIREGUARD)", Since: "Linux 5.6"}
	kernel, noKernel := fakeKind(config.DriverWireGuard, nil), fakeKind(config.DriverWireGuard, missing)
	user, ipsec := fakeKind(config.DriverUserspace, nil), fakeKind(config.DriverIPsec, nil)
	userESP := fakeKind(config.DriverIPsecUser, nil)
	network := func(drivers ...string) config.Config {
		var c config.Config
		for _, d := range drivers {
			c.Networks = append(c.Networks, config.Network{Name: "n" + d, Encrypted: true, Driver: d})
		}
		return c
	}
	for name, c := range map[string]struct {
		cfg     config.Config
		kinds   []tunnel.Kind
		want    string
		refused string // names, joined
		target  string // of the cluster's epoch; empty: auto
	}{
		"auto, kernel":            {network("auto"), []tunnel.Kind{kernel, user}, "wireguard", "", ""},
		"auto, no kernel":         {network("auto"), []tunnel.Kind{noKernel, user}, "userspace", "wireguard", ""},
		"auto never takes ipsec":  {network("auto"), []tunnel.Kind{noKernel, ipsec}, "", "wireguard", ""},
		"nor that in userspace":   {network("auto"), []tunnel.Kind{noKernel, ipsec, userESP}, "", "wireguard", ""},
		"both name ESP":           {network("ipsec-userspace"), []tunnel.Kind{ipsec, userESP}, "ipsec-userspace", "", "ipsec"},
		"both name ESP, reversed": {network("ipsec"), []tunnel.Kind{ipsec, userESP}, "ipsec", "", "ipsec-userspace"},
		"own ESP is missing":      {network("auto", "ipsec-userspace"), []tunnel.Kind{kernel, ipsec}, "", "ipsec-userspace", "ipsec"},
		"ESP and WireGuard":       {network("ipsec-userspace"), []tunnel.Kind{kernel, userESP}, "", "", "wireguard"},
		"userspace ESP on target": {network("auto"), []tunnel.Kind{kernel, ipsec, userESP}, "ipsec-userspace", "", "ipsec-userspace"},
		"auto has come to ESP":    {network("auto"), []tunnel.Kind{noKernel, user, ipsec, userESP}, "ipsec-userspace", "", "auto-esp"},
		"but here it is pinned":   {network("auto", "ipsec"), []tunnel.Kind{noKernel, user, ipsec, userESP}, "ipsec", "", "auto-esp"},
		"and here it does not go": {network("auto", "userspace"), []tunnel.Kind{noKernel, user, ipsec, userESP}, "", "", "auto-esp"},
		"and here it is missing":  {network("auto"), []tunnel.Kind{noKernel, user, fakeKind("ipsec-userspace", missing)}, "", "ipsec-userspace", "auto-esp"},
		"explicit":                {network("auto", "userspace"), []tunnel.Kind{kernel, user}, "userspace", "", ""},
		"explicit, missing":       {network("wireguard"), []tunnel.Kind{noKernel, user}, "", "wireguard", ""},
		"explicit, missing, auto": {network("wireguard", "auto"), []tunnel.Kind{noKernel, user}, "userspace", "wireguard", ""},
		"not in this version":     {network("ipsec"), []tunnel.Kind{kernel, user}, "", "ipsec", ""},
		"the target decides":      {network("auto"), []tunnel.Kind{kernel, user, ipsec}, "ipsec", "", "ipsec"},
		"the target does not fit": {network("auto", "wireguard"), []tunnel.Kind{kernel, user, ipsec}, "", "", "ipsec"},
		"the target fits":         {network("auto", "ipsec"), []tunnel.Kind{kernel, user, ipsec}, "ipsec", "", "ipsec"},
		"the target is missing":   {network("auto"), []tunnel.Kind{noKernel, user}, "", "wireguard", "wireguard"},
	} {
		d := newDrivers(c.kinds, tunnel.Env{}, slog.New(slog.DiscardHandler), time.Now)
		got := d.choose(context.Background(), c.cfg, cmp.Or(c.target, config.DriverAuto))
		var names []string
		for _, r := range got.refused {
			names = append(names, r.Kind)
		}
		if got.name != c.want || strings.Join(names, ",") != c.refused || (got.unable == "") != (c.want != "") {
			t.Errorf("%s: %q, refused %v, %s", name, got.name, names, got.unable)
		}
	}
}

// stubIssuer answers with fixed values.
type stubIssuer struct {
	issuer
	err    error
	tokens []keystore.TokenInfo
	seeds  []netip.AddrPort

	decided []string
}

func (i *stubIssuer) Issue(time.Time, netip.Addr, keys.TokenID, keys.JoinRequest) (keys.JoinAnswer, error) {
	return keys.JoinAnswer{}, i.err
}
func (i *stubIssuer) Renew(time.Time, keys.Cert, bool) (keys.Credential, error) {
	return keys.Credential{}, i.err
}
func (i *stubIssuer) RaiseSerial(uint64)                    {}
func (i *stubIssuer) Tokens(time.Time) []keystore.TokenInfo { return i.tokens }
func (i *stubIssuer) RevokeToken(keys.TokenID) error        { return i.err }
func (i *stubIssuer) CreateToken(spec keystore.TokenSpec, _ time.Time) (keys.Token, keystore.TokenInfo, error) {
	i.seeds = spec.Seeds
	if spec.Uses > keystore.MaxTokenUses || spec.TTL > keystore.MaxTokenTTL {
		return keys.Token{}, keystore.TokenInfo{}, keystore.ErrTokenSpec
	}
	return keys.Token{}, keystore.TokenInfo{State: keystore.TokenPending}, i.err
}

func (i *stubIssuer) DecideJoin(id keys.TokenID, node ids.NodeID, allow bool) error {
	i.decided = append(i.decided, fmt.Sprint(id, " ", node, " ", allow))
	return i.err
}

// TestAdmissionErrors: a joiner hears why it is refused.
func TestAdmissionErrors(t *testing.T) {
	for from, to := range map[error]error{
		keystore.ErrTokenUsed:    noisenet.ErrTokenUsed,
		keystore.ErrTokenExpired: noisenet.ErrTokenExpired,
		keystore.ErrTokenUnknown: noisenet.ErrTokenUnknown,
		keystore.ErrTokenRevoked: noisenet.ErrTokenRevoked,
	} {
		_, err := noisenet.IssuerAdmission(&stubIssuer{err: from}, time.Now).Issue(context.Background(), netip.AddrPort{}, keys.TokenID{}, keys.JoinRequest{})
		if !errors.Is(err, to) {
			t.Errorf("%v became %v", from, err)
		}
	}
}

// TestTokens covers the calls of the token API around the issuer.
func TestTokens(t *testing.T) {
	ctx := context.Background()
	stub := &stubIssuer{tokens: []keystore.TokenInfo{
		{ID: keys.TokenID{1, 2}, State: keystore.TokenPending},
		{ID: keys.TokenID{1, 3}, State: keystore.TokenUsed, Limit: 1, Uses: []keystore.TokenUse{{Node: ids.NodeID{9}, Hostname: "web-9"}}},
	}}
	a := New(Options{})
	a.issuerOf = func() (issuer, error) { return stub, nil }
	list, err := a.Tokens(ctx)
	if err != nil || len(list) != 2 || list[0].State != api.TokenOpen || len(list[1].Uses) != 1 || list[1].Uses[0].Name != "web-9" {
		t.Errorf("tokens = %+v, %v", list, err)
	}
	for id, want := range map[string]api.Code{"01": api.CodeInvalid, "": api.CodeNotFound, "ff": api.CodeNotFound} {
		if err := a.RevokeToken(ctx, id); api.CodeOf(err) != want {
			t.Errorf("revoke %q: %v, want %s", id, err, want)
		}
	}
	if err := a.RevokeToken(ctx, "0102"); err != nil {
		t.Error(err)
	}
	stub.err = keystore.ErrTokenUsed
	if err := a.RevokeToken(ctx, "0103"); api.CodeOf(err) != api.CodeRefused {
		t.Errorf("revoke a used token: %v", err)
	}
	stub.err = nil
	for _, bad := range []api.TokenRequest{
		{Seeds: []string{"example.com:7946"}}, {Seeds: []string{"192.0.2.1"}}, {Seeds: []string{"192.0.2.1:0"}},
		{Seeds: []string{"192.0.2.1:1", "192.0.2.1:2", "192.0.2.1:3", "192.0.2.1:4"}},
		{Seeds: []string{"192.0.2.1:1"}, Uses: keystore.MaxTokenUses + 1}, {Seeds: []string{"192.0.2.1:1"}, TTL: -1}, {Seeds: []string{"192.0.2.1:1"}, TTL: api.Duration(100 * 24 * time.Hour)},
	} {
		if _, err := a.CreateToken(ctx, bad); api.CodeOf(err) != api.CodeInvalid {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, err := a.CreateToken(ctx, api.TokenRequest{Seeds: []string{"192.0.2.1:7946"}}); err != nil || len(stub.seeds) != 1 {
		t.Errorf("create: seeds %v, %v", stub.seeds, err)
	}
	a.issuerOf = func() (issuer, error) { return nil, keystore.ErrNoIssuer }
	if _, err := a.Tokens(ctx); api.CodeOf(err) != api.CodeRefused {
		t.Errorf("without issuer key: %v", err)
	}
}

// TestDryRun names each object once, and plaintext in capitals.
func TestDryRun(t *testing.T) {
	c := config.Config{RuntimeDir: "/run/so", Networks: []config.Network{blue(), lab()}, Data: config.Data{Port: 51871, VXLANPort: 4789}}
	golden(t, "testdata/dryrun.json", DryRun(c, ids.NodeID{1}))
}
