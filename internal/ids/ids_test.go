package ids

import (
	"net/netip"
	"testing"
)

func TestNodeIDText(t *testing.T) {
	var pub [32]byte
	for i := range pub {
		pub[i] = byte(i)
	}
	id := NodeIDOf(pub)
	back, err := ParseNodeID(id.String())
	if err != nil || back != id {
		t.Fatalf("ParseNodeID(%q) = %v, %v", id, back, err)
	}
	if !id.InnerAddr().IsPrivate() || !id.InnerAddr().Is6() {
		t.Errorf("inner address %v is not an IPv6 unique local address", id.InnerAddr())
	}
	// The last of 26 characters carries three bits of padding: a text whose
	// padding is not zero is another spelling of the same ID, and is refused.
	text := id.String()
	for _, bad := range []string{"", "abc", text + "a", text[:25] + "1", text[:25] + "b"} {
		if bad == text {
			continue
		}
		if _, err := ParseNodeID(bad); err == nil {
			t.Errorf("ParseNodeID(%q) succeeded", bad)
		}
	}
}

func TestDeriveVNI(t *testing.T) {
	for _, name := range []string{"blue", "lab", "Blue.Team", ""} {
		v := DeriveVNI(name)
		if !v.Valid() || v < 4096 {
			t.Errorf("DeriveVNI(%q) = %d, outside 4096..%d", name, v, MaxVNI)
		}
		if v != DeriveVNI(name) {
			t.Errorf("DeriveVNI(%q) is not stable", name)
		}
	}
}

func TestEndpointMAC(t *testing.T) {
	a := EndpointMAC(4097, netip.MustParseAddr("10.77.0.5"))
	if a[0]&0x03 != 0x02 {
		t.Errorf("MAC %v is not locally administered unicast", a)
	}
	if a != EndpointMAC(4097, netip.MustParseAddr("::ffff:10.77.0.5")) {
		t.Error("a mapped address gave another MAC")
	}
	if a == EndpointMAC(4098, netip.MustParseAddr("10.77.0.5")) {
		t.Error("another network gave the same MAC")
	}
	back, err := ParseMAC(a.String())
	if err != nil || back != a {
		t.Errorf("ParseMAC(%q) = %v, %v", a, back, err)
	}
	for _, bad := range []string{"", "02:00", "02:00:00:00:00:0g", "020000000001", "02:0:00:00:00:001"} {
		if _, err := ParseMAC(bad); err == nil {
			t.Errorf("ParseMAC(%q) succeeded", bad)
		}
	}
}
