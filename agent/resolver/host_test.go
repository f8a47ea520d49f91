package resolver

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestFromFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	list := FromFile(path)
	if got := list(); len(got) > 0 {
		t.Errorf("without a file: %v", got)
	}
	for _, c := range []struct {
		text string
		want []netip.AddrPort
	}{
		{"# none\n", nil},
		{"nameserver 192.0.2.1\nsearch example.org\nnameserver 2001:db8::1\noptions ndots:2\n",
			[]netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:53"), netip.MustParseAddrPort("[2001:db8::1]:53")}},
		{"nameserver fe80::1%eth0\nnameserver nobody\nnameserver 0.0.0.0\n", []netip.AddrPort{netip.MustParseAddrPort("[fe80::1%eth0]:53")}},
	} {
		if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := list(); !slices.Equal(got, c.want) {
			t.Errorf("%q: %v, want %v", c.text, got, c.want)
		}
		if got := list(); !slices.Equal(got, c.want) {
			t.Errorf("%q, once more: %v", c.text, got)
		}
	}
}
