package membership

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/membership/item"
)

// TestJudge: when news counts as withheld. Times are minutes before now.
func TestJudge(t *testing.T) {
	now := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)
	ago := func(minutes float64) time.Time { return now.Add(-time.Duration(minutes * float64(time.Minute))) }
	a, b := keys.IssuerPublic{1}, keys.IssuerPublic{2}
	const limit = 10 * time.Minute
	silent := func(minutes float64) []Stale { return []Stale{{Since: ago(minutes)}} }
	for name, c := range map[string]struct {
		list []heard
		want []Stale
	}{
		"never heard":                      {nil, nil},
		"all is well":                      {[]heard{{a, ago(100), ago(1), ago(1)}}, nil},
		"a heartbeat on its way":           {[]heard{{a, ago(100), ago(0), ago(1)}}, nil},
		"just not silent":                  {[]heard{{a, ago(100), ago(10), ago(10)}}, nil},
		"silent":                           {[]heard{{a, ago(100), ago(10.1), ago(10.1)}}, silent(10.1)},
		"silent, since before the restart": {[]heard{{a, ago(10.1), ago(500), time.Time{}}}, silent(500)},
		"silent, but just restarted":       {[]heard{{a, ago(9.9), ago(500), time.Time{}}}, nil},
		"delayed by an hour":               {[]heard{{a, ago(100), ago(60), ago(60)}}, silent(60)},
		"one of two is silent":             {[]heard{{a, ago(100), ago(50), ago(50)}, {b, ago(100), ago(1), ago(1)}}, nil},
		"both are":                         {[]heard{{a, ago(100), ago(50), ago(50)}, {b, ago(100), ago(20), ago(20)}}, silent(20)},
		"clock went back":                  {[]heard{{a, ago(100), ago(-6), ago(-6)}}, silent(-6)},
		"clock a little behind":            {[]heard{{a, ago(100), ago(-5), ago(-5)}}, nil},
		"withheld":                         {[]heard{{a, ago(100), ago(1), ago(10.1)}}, []Stale{{a, ago(10.1)}}},
		"withheld for less":                {[]heard{{a, ago(100), ago(1), ago(10)}}, nil},
		"withheld from the start":          {[]heard{{a, ago(10.1), ago(1), time.Time{}}}, []Stale{{Issuer: a}}},
		"new issuer":                       {[]heard{{a, ago(9.9), ago(1), time.Time{}}}, nil},
		"withheld, of one of two":          {[]heard{{a, ago(100), ago(1), ago(1)}, {b, ago(100), ago(1), ago(30)}}, []Stale{{b, ago(30)}}},
		"withheld, of both":                {[]heard{{a, ago(100), ago(1), ago(20)}, {b, ago(100), ago(1), ago(30)}}, []Stale{{a, ago(20)}, {b, ago(30)}}},
		"withheld, then silent":            {[]heard{{a, ago(100), ago(11), ago(30)}}, silent(11)},
	} {
		if d := cmp.Diff(c.want, judge(now, limit, c.list)); d != "" {
			t.Errorf("%s:\n%s", name, d)
		}
	}
	if got := judge(now, 0, []heard{{a, ago(100), ago(50), ago(50)}}); got != nil {
		t.Errorf("without a limit: %v", got)
	}
}

// TestHearing: an issuer counts as reached as of the newest heartbeat whose set
// this node has had, also if it has more by then.
func TestHearing(t *testing.T) {
	l := serialLab(t)
	signer, start := l.signer("a"), time.Now()
	var b beats
	at := func(minutes int) time.Time {
		return start.Add(time.Duration(minutes) * time.Minute).Truncate(time.Second)
	}
	beat := func(minutes int, digest byte) {
		t.Helper()
		if !b.take(at(minutes), l.beatOf(signer, at(minutes), [32]byte{digest})) {
			t.Fatalf("heartbeat of minute %d is no news", minutes)
		}
	}
	look := func(minutes int, digest byte, newest, reached int) {
		t.Helper()
		list := b.hear(at(minutes), &item.Set{}, [32]byte{digest})
		if len(list) != 1 || !list[0].newest.Equal(at(newest)) || !list[0].reached.Equal(at(reached)) || !list[0].since.Equal(at(1)) {
			t.Errorf("minute %d: %+v", minutes, list)
		}
	}
	if got := b.hear(at(0), &item.Set{}, [32]byte{1}); got != nil {
		t.Errorf("nobody was heard: %+v", got)
	}
	beat(1, 1)
	look(1, 1, 1, 1)
	look(2, 2, 1, 1) // this node has more
	beat(3, 1)
	look(3, 2, 3, 3) // so the issuer lacks something, not this node
	beat(4, 5)
	look(4, 2, 4, 3)
	beat(5, 5)
	look(5, 2, 5, 3)
	look(6, 5, 5, 5) // it has come
	for i := range maxPassed + 2 {
		b.hear(at(7), &item.Set{}, [32]byte{byte(i), 1})
	}
	if len(b.passed) != maxPassed {
		t.Errorf("%d digests are remembered", len(b.passed))
	}
	if got := b.hear(l.auth.End.AddDate(1, 0, 0), &item.Set{}, [32]byte{}); got != nil || len(b.sights) != 0 {
		t.Errorf("after the end of its delegation: %+v, %d", got, len(b.sights))
	}
}
