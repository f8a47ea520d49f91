package keys

import "testing"

func TestTunnelPublicHasOneSpelling(t *testing.T) {
	key := TunnelPublic{1, 2, 3}
	text := key.String()
	var back TunnelPublic
	if err := back.UnmarshalText([]byte(text)); err != nil || back != key {
		t.Fatalf("UnmarshalText(%q) = %v, %v", text, back, err)
	}
	for _, bad := range []string{"", text[:43], text + "\n", text[:20] + "\n" + text[20:], text[:42] + "B="} {
		if err := back.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("UnmarshalText(%q) was accepted", bad)
		}
	}
}
