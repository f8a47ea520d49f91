package e2e

import (
	"bytes"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/test/netlab"
)

// TestReplay records everything that the hosts send and sends it again, to both
// ends: while the keys are still in use, and after they have been replaced.
// Nothing is accepted a second time. The plaintext network is the control: there
// each packet comes twice.
func TestReplay(t *testing.T) {
	for _, driver := range drivers() {
		t.Run(driver, func(t *testing.T) {
			ctx, f := startFor(t, suited(), 2, 6+scaled(t, 12), "")
			toDriver(t, ctx, f, driver)
			rate := lowRate(t)
			l := startLoad(t, ctx, f, rate, 200)
			l.refusals = func(string) bool { return true }
			marker := []byte("plaintext comes twice ")
			open, err := netlab.StartMesh(ctx, netlab.MeshOptions{Points: points(l.lab), Rate: 20, Marker: marker})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { open.Stop() })
			rec, err := f.Lab.Record(netlab.Any())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { rec.Stop() })
			// A minute at full size.
			l.more(ctx, uint64(max(3, scaled(t, 60))*rate), "while recording")
			frames, missed := rec.Stop()
			clear := 0
			for _, fr := range frames {
				if bytes.Contains(fr.Bytes(), marker) {
					clear++
				}
			}
			t.Logf("%d frames recorded, %d of them plaintext, %d not kept", len(frames), clear, missed)
			if clear == 0 || missed > 0 {
				t.Fatal("the recording is not complete")
			}
			seen := l.counters()
			if err := f.Lab.Replay(ctx, frames, 4*rate); err != nil {
				t.Fatal(err)
			}
			waitUntil(t, ctx, 20*time.Second, "the plaintext packets to come twice", func() (bool, error) {
				return open.Result().Duplicated >= uint64(clear)*9/10, nil
			})
			l.more(ctx, 50, "after the replay")
			if r := l.mesh.Result(); r.Duplicated != 0 {
				t.Errorf("%d packets were accepted twice under the same keys", r.Duplicated)
			}
			if driver == "ipsec" {
				l.wantReplaysCounted(seen, len(frames))
			}
			r, _ := rotate(t, ctx, f.Nodes[0], "")
			if err := f.WaitEpoch(ctx, r.To); err != nil {
				t.Fatal(err)
			}
			if err := f.Lab.Replay(ctx, frames, 4*rate); err != nil {
				t.Fatal(err)
			}
			l.more(ctx, 50, "after the replay of an old epoch")
			if r := l.mesh.Result(); r.Duplicated != 0 {
				t.Errorf("%d packets were accepted twice after their keys' end", r.Duplicated)
			}
			if err := f.WaitConnected(ctx); err != nil {
				t.Error(err)
			}
			l.finish(ctx)
		})
	}
}

// wantReplaysCounted asserts that ESP counted replayed packets on every host: those
// within the window as replayed, older ones by their tag, since with sequence numbers
// of 64 bits they are taken for much later ones (RFC 4303, A2.2). Of a minute all are older.
func (l *load) wantReplaysCounted(before []map[string]int64, frames int) {
	l.t.Helper()
	now := l.counters()
	var within, older int64
	for i := len(l.blue); i < len(now); i += 2 {
		grown := int64(0)
		for _, j := range []int{i, i + 1} {
			g := netlab.Grown(before[j], now[j])
			within, older = within+g["XfrmInStateSeqError"], older+g["XfrmInStateProtoError"]
			grown += g["XfrmInStateSeqError"] + g["XfrmInStateProtoError"]
		}
		if grown == 0 {
			l.t.Errorf("%s counted no replayed packet", l.f.Nodes[(i-len(l.blue))/2].Name)
		}
	}
	l.t.Logf("of %d replayed frames of all kinds %d were within the window, %d failed their tag", frames, within, older)
}
