package nearest

import "testing"

func TestOf(t *testing.T) {
	choices := []string{"encrypted", "subnets", "driver", "mtu", "name", "vni"}
	for got, want := range map[string]string{
		"encypted": "encrypted", "ENCRYPTED": "encrypted", "encryption": "encrypted", "subnet": "subnets", "dirver": "driver",
		"mut": "mtu", "zzzz": "", "": "",
	} {
		c, _ := Of(got, choices)
		if c != want {
			t.Errorf("Of(%q) = %q, want %q", got, c, want)
		}
	}
}
