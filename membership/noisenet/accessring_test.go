package noisenet

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

func answering(c *Config) {
	c.Handler = func(_ context.Context, _ Peer, req []byte) ([]byte, error) { return req, nil }
}

// TestAccessKeys: nodes that are one change of the access key apart talk to each
// other, in either direction; those that share none do so without one.
func TestAccessKeys(t *testing.T) {
	key := func(n byte) keys.AccessKey { return must(keys.AccessKeyFromRaw32(raw32(n))) }
	c := newTestCluster(1)
	for name, tt := range map[string]struct{ a, b []keys.AccessKey }{
		"the same":            {[]keys.AccessKey{key(70)}, []keys.AccessKey{key(70)}},
		"a is ahead":          {[]keys.AccessKey{key(71), key(70)}, []keys.AccessKey{key(70)}},
		"b is ahead":          {[]keys.AccessKey{key(70)}, []keys.AccessKey{key(71), key(70)}},
		"two changes":         {[]keys.AccessKey{key(72), key(71), key(70)}, []keys.AccessKey{key(70)}},
		"none in common":      {[]keys.AccessKey{key(71)}, []keys.AccessKey{key(70)}},
		"none, and the other": {[]keys.AccessKey{key(70)}, []keys.AccessKey{key(71)}},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := start(t, c.node(10), answering), start(t, c.node(20), answering)
			if err := errors.Join(a.SetAccess(tt.a), b.SetAccess(tt.b)); err != nil {
				t.Fatal(err)
			}
			a.dir.set(b.node.id, b.addr())
			if got, err := a.Call(testContext(t), b.node.id, []byte("hello")); err != nil || string(got) != "hello" {
				t.Errorf("%q, %v", got, err)
			}
		})
	}
}

// TestFormerKeyEnds: a key that is no longer in the list opens nothing.
func TestFormerKeyEnds(t *testing.T) {
	c := newTestCluster(1)
	old, fresh := must(keys.AccessKeyFromRaw32(raw32(70))), must(keys.AccessKeyFromRaw32(raw32(71)))
	r := c.node(20).party()
	entries := must(newAccessEntries([]keys.AccessKey{fresh, old}))
	r.ring = func() []accessEntry { return entries }
	i := c.node(10).party()
	i.access = old
	if err := i.prepare(); err != nil {
		t.Fatal(err)
	}
	if _, _, err := shake(i, r, ids.NodeID{}, nil); err != nil {
		t.Errorf("former key: %v", err)
	}
	entries = entries[:1]
	if _, _, err := shake(i, r, ids.NodeID{}, nil); !errors.Is(err, ErrHandshake) {
		t.Errorf("after its time: %v", err)
	}
}

// TestUnkeyedIsRare: handshakes without access key are few, whoever asks, and give
// a stranger nothing.
func TestUnkeyedIsRare(t *testing.T) {
	c, other := newTestCluster(1), newTestCluster(50)
	b := start(t, c.node(20), func(c *Config) { answering(c); c.limits.bucketRate, c.limits.bucketBurst = 1000, 1000 })
	try := func(p *party) error {
		raw, err := net.Dial("tcp", b.addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = raw.Close() }()
		_ = raw.SetDeadline(time.Now().Add(10 * time.Second))
		_, err = initiateWith(raw, p, ids.NodeID{}, accessEntry{none: true})
		return err
	}
	if err := try(other.node(11).party()); err == nil {
		t.Error("a stranger got through")
	}
	good, began := 0, time.Now()
	for range 60 {
		if try(c.node(10).party()) == nil {
			good++
		}
	}
	if most := unkeyedRate + int(time.Since(began).Seconds()*unkeyedRate) + 1; good == 0 || good > most {
		t.Errorf("%d handshakes without access key, want 1 to %d", good, most)
	}
	// They take nothing from those with a key.
	a := start(t, c.node(12), answering)
	a.dir.set(b.node.id, b.addr())
	if _, err := a.Call(testContext(t), b.node.id, nil); err != nil {
		t.Errorf("with the key: %v", err)
	}
}
