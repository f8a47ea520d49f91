package agent

import "testing"

// TestBurst: what an endpoint sends at once goes into one call of the kernel, when it is cut,
// sealed and in one piece again; and one more full segment would not.
func TestBurst(t *testing.T) {
	for mtu := 1280; mtu < 65_000; mtu += 37 {
		const headers, reserve, esp, most = 72, 320, 37, 65_487
		segments := (burst(mtu) - reserve) / (mtu - headers)
		each := mtu + vxlanOverheadV6 + esp
		if segments < 1 || segments*each > most && segments > 1 || (segments+1)*each <= most {
			t.Fatalf("mtu %d: burst %d, %d segments", mtu, burst(mtu), segments)
		}
		if burst(mtu) > 1<<16 {
			t.Fatalf("mtu %d: burst %d is more than an IP packet", mtu, burst(mtu))
		}
	}
}
