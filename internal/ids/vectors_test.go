package ids

import (
	"encoding/hex"
	"flag"
	"net/netip"
	"testing"

	"github.com/secure-overlay/secure-overlay/test/protocol"
)

var update = flag.Bool("update", false, "rewrite the vectors in PROTOCOL.md")

func TestProtocolVectors(t *testing.T) {
	var key [32]byte
	raw, err := hex.DecodeString("ed4928c628d1c2c6eae90338905995612959273a5c63f93636c14614ac8737d1")
	if err != nil || copy(key[:], raw) != len(key) {
		t.Fatal(err)
	}
	id := NodeIDOf(key)
	v4, v6 := netip.MustParseAddr("10.77.0.5"), netip.MustParseAddr("fd77::5")
	protocol.Check(t, "derivations", map[string]string{
		"identity_key":  hex.EncodeToString(key[:]),
		"node_id":       hex.EncodeToString(id[:]),
		"node_id_text":  id.String(),
		"inner_address": id.InnerAddr().String(),
		"vni_blue":      DeriveVNI("blue").String(),
		"vni_net242":    DeriveVNI("net242").String(),
		"mac_4242_v4":   EndpointMAC(4242, v4).String(),
		"mac_4242_v6":   EndpointMAC(4242, v6).String(),
	}, *update)
}
