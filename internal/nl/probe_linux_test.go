package nl

import "testing"

func TestProbeLink(t *testing.T) {
	requireRoot(t)
	err := InScratch(func(_ *Namespace, h *Handle) error {
		for _, kind := range []string{"bridge", "veth", "vxlan"} {
			if err := h.ProbeLink(kind); err != nil {
				t.Errorf("%s: %v", kind, err)
			}
		}
		if err := h.ProbeLink("nosuchkind"); !IsNotSupported(err) {
			t.Errorf("unknown kind: %v", err)
		}
		links, err := h.LinkList()
		if err != nil || len(links) != 1 {
			t.Errorf("probes left links behind: %v, %v", links, err)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
