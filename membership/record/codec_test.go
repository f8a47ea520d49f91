package record

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
)

var update = flag.Bool("update", false, "rewrite the test vectors")

var nodeEqual = cmp.Options{cmpopts.EquateComparable(netip.AddrPort{}, netip.Addr{}, netip.Prefix{})}

func TestRoundTrip(t *testing.T) {
	id := member(t, authority(t), "a")
	moved := example(id.ID, 3)
	moved.Networks[0].Both = true
	moved.Networks[1].Both, moved.Networks[1].Moved = true, true
	for name, n := range map[string]Node{
		"empty":   {ID: id.ID},
		"example": example(id.ID, 3),
		"moved":   moved,
		"largest": largest(id.ID).Canonical(),
	} {
		t.Run(name, func(t *testing.T) {
			raw := sign(t, n, id.Node)
			got, err := Parse(raw)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(n, got, nodeEqual...); diff != "" {
				t.Errorf("parsed record differs (-want +got):\n%s", diff)
			}
			if !bytes.Equal(Encode(got), raw[:len(raw)-keys.SignatureSize]) {
				t.Error("parsed record re-encodes to other bytes")
			}
		})
	}
}

func TestLargestRecordHasMaxSize(t *testing.T) {
	id := member(t, authority(t), "a")
	if got := len(sign(t, largest(id.ID), id.Node)); got != MaxSize {
		t.Errorf("largest record has %d bytes, MaxSize is %d", got, MaxSize)
	}
	if MaxSize != 1202044 {
		t.Errorf("MaxSize is %d: correct its comment, DESIGN.md and PROTOCOL.md", MaxSize)
	}
}

func TestOrderOfInputDoesNotMatter(t *testing.T) {
	id := member(t, authority(t), "a")
	n := example(id.ID, 3)
	want := Encode(n)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		m := n.Canonical()
		rng.Shuffle(len(m.Tunnels), func(i, j int) { m.Tunnels[i], m.Tunnels[j] = m.Tunnels[j], m.Tunnels[i] })
		rng.Shuffle(len(m.Networks), func(i, j int) { m.Networks[i], m.Networks[j] = m.Networks[j], m.Networks[i] })
		rng.Shuffle(len(m.Attached), func(i, j int) { m.Attached[i], m.Attached[j] = m.Attached[j], m.Attached[i] })
		for k := range m.Networks {
			s := m.Networks[k].Subnets
			rng.Shuffle(len(s), func(i, j int) { s[i], s[j] = s[j], s[i] })
		}
		if !bytes.Equal(Encode(m), want) {
			t.Fatalf("another order of the same content encodes differently: %+v", m)
		}
	}
}

func TestCanonicalSharesNothing(t *testing.T) {
	n := example(ids.NodeID{1}, 1)
	c := n.Canonical()
	c.Underlay[0].MTU = 1
	c.Tunnels[0].Port = 1
	c.Networks[0].Subnets[0] = netip.Prefix{}
	c.Networks[0].Blocks[0] = netip.Prefix{}
	c.Attached[0].Addrs[0] = netip.Addr{}
	c.Networks[0].Gateways[0] = netip.Addr{}
	c.Networks[0].Ranges[0], c.Networks[0].Reserved[0] = netip.Prefix{}, netip.Prefix{}
	c.Attached[1].Services[0] = ""
	if diff := cmp.Diff(example(ids.NodeID{1}, 1), n, nodeEqual...); diff != "" {
		t.Errorf("writing to the canonical copy changed the original:\n%s", diff)
	}
}

func TestValidateRefuses(t *testing.T) {
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	cases := map[string]func(*Node){
		"zero ID":            func(n *Node) { n.ID = ids.NodeID{} },
		"moved, in one form": func(n *Node) { n.Networks[0].Moved = true },
		"too many underlay": func(n *Node) {
			n.Underlay = largest(n.ID).Underlay
			n.Underlay = append(n.Underlay, example(n.ID, 1).Underlay[0])
		},
		"underlay port zero":       func(n *Node) { n.Underlay[0].Control = netip.AddrPortFrom(addr("198.18.0.2"), 0) },
		"underlay invalid":         func(n *Node) { n.Underlay[0].Control = netip.AddrPort{} },
		"underlay unspecified":     func(n *Node) { n.Underlay[0].Control = netip.MustParseAddrPort("0.0.0.0:7946") },
		"underlay multicast":       func(n *Node) { n.Underlay[0].Control = netip.MustParseAddrPort("224.0.0.1:7946") },
		"underlay link-local":      func(n *Node) { n.Underlay[0].Control = netip.MustParseAddrPort("[fe80::1]:7946") },
		"underlay twice":           func(n *Node) { n.Underlay[1] = n.Underlay[0] },
		"tunnel epoch zero":        func(n *Node) { n.Tunnels[0].Epoch = 0 },
		"tunnel without wire":      func(n *Node) { n.Tunnels[0].Wire = WireNone },
		"WireGuard without key":    func(n *Node) { n.Tunnels[0].Public = keys.TunnelPublic{} },
		"WireGuard without port":   func(n *Node) { n.Tunnels[0].Port = 0 },
		"tunnel twice":             func(n *Node) { n.Tunnels[1] = n.Tunnels[0]; n.Tunnels[1].Instance = 9 },
		"too many tunnels":         func(n *Node) { n.Tunnels = append(largest(n.ID).Tunnels, n.Tunnels[1]); n.Tunnels[16].Epoch = 99 },
		"network without name":     func(n *Node) { n.Networks[0].Name = "" },
		"network name too long":    func(n *Node) { n.Networks[0].Name = strings.Repeat("x", 64) },
		"network name with escape": func(n *Node) { n.Networks[0].Name = "a\x1b[2J" },
		"network name with space":  func(n *Node) { n.Networks[0].Name = "a b" },
		"network name twice":       func(n *Node) { n.Networks[1].Name = n.Networks[0].Name },
		"VNI zero":                 func(n *Node) { n.Networks[1].VNI, n.Attached = 0, nil },
		"VNI too large":            func(n *Node) { n.Networks[1].VNI = ids.MaxVNI + 1 },
		"VNI twice":                func(n *Node) { n.Networks[1].VNI = n.Networks[0].VNI },
		"VXLAN port zero":          func(n *Node) { n.Networks[0].VTEPPort = 0 },
		"subnet with host bits":    func(n *Node) { n.Networks[0].Subnets[0] = prefix("10.1.0.1/16") },
		"subnet invalid":           func(n *Node) { n.Networks[0].Subnets[0] = netip.Prefix{} },
		"subnet IPv4 in IPv6":      func(n *Node) { n.Networks[0].Subnets[1] = prefix("::ffff:10.0.0.0/104") },
		"block outside":            func(n *Node) { n.Networks[0].Blocks[0] = prefix("10.2.0.0/24") },
		"block wider":              func(n *Node) { n.Networks[0].Blocks[0] = prefix("10.0.0.0/8") },
		"gateway outside":          func(n *Node) { n.Networks[0].Gateways[0] = addr("10.2.0.1") },
		"gateway invalid":          func(n *Node) { n.Networks[0].Gateways[0] = netip.Addr{} },
		"gateway twice":            func(n *Node) { n.Networks[0].Gateways = append(n.Networks[0].Gateways, n.Networks[0].Gateways[0]) },
		"range outside":            func(n *Node) { n.Networks[0].Ranges[0] = prefix("10.0.0.0/8") },
		"range with host bits":     func(n *Node) { n.Networks[0].Ranges[0] = prefix("10.1.0.1/17") },
		"reserved outside":         func(n *Node) { n.Networks[1].Reserved = []netip.Prefix{prefix("10.1.0.0/24")} },
		"9 reserved": func(n *Node) {
			for i := range 7 {
				n.Networks[0].Reserved = append(n.Networks[0].Reserved, prefix(fmt.Sprintf("fd00:1::1:%x/128", i)))
			}
		},
		"endpoint name upper case": func(n *Node) { n.Attached[0].Name = "Web" },
		"endpoint name with dot":   func(n *Node) { n.Attached[0].Name = "web.blue" },
		"endpoint name too long":   func(n *Node) { n.Attached[0].Name = strings.Repeat("x", 64) },
		"service empty":            func(n *Node) { n.Attached[1].Services[0] = "" },
		"service twice":            func(n *Node) { n.Attached[1].Services[0] = n.Attached[1].Services[1] },
		"too many services": func(n *Node) {
			n.Attached[1].Services = []string{"a", "b", "c", "d", "e", "f", "g", "h", "i"}
		},
		"too long names": func(n *Node) {
			*n = largest(n.ID).Canonical()
			n.Attached[0].Name += "x"
		},
		"endpoint elsewhere":     func(n *Node) { n.Attached[0].VNI = 1 },
		"endpoint MAC zero":      func(n *Node) { n.Attached[0].MAC = ids.MAC{} },
		"endpoint group MAC":     func(n *Node) { n.Attached[1].MAC = ids.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} },
		"endpoint twice":         func(n *Node) { n.Attached[1].MAC = n.Attached[0].MAC },
		"endpoint multicast":     func(n *Node) { n.Attached[0].Addrs[1] = addr("ff02::1") },
		"endpoint address twice": func(n *Node) { n.Attached[0].Addrs[1] = n.Attached[0].Addrs[0] },
		"endpoint 9 addresses": func(n *Node) {
			n.Attached[0].Addrs = append(largest(n.ID).Attached[0].Addrs, addr("fd00:2::9"))
		},
	}
	id := member(t, authority(t), "a")
	for name, spoil := range cases {
		t.Run(name, func(t *testing.T) {
			n := example(id.ID, 1).Canonical()
			spoil(&n)
			if err := n.Validate(); !errors.Is(err, ErrMalformed) {
				t.Errorf("Validate gave %v, want ErrMalformed", err)
			}
			// The bytes of such a record, signed by its owner, are refused
			// by Parse: an honest encoder is not what it relies on.
			body := encode(n)
			sig := id.Node.Sign(Domain, body[len(Domain):])
			if got, err := Parse(append(body, sig[:]...)); err == nil {
				t.Errorf("Parse accepted %+v", got)
			}
		})
	}
}

// Zones have no place on the wire, so they must not get lost on the way.
func TestValidateRefusesZones(t *testing.T) {
	n := example(ids.NodeID{1}, 1)
	n.Underlay[0].Control = netip.MustParseAddrPort("[2001:db8::1%eth0]:7946")
	if err := n.Validate(); !errors.Is(err, ErrMalformed) {
		t.Errorf("underlay with zone: %v, want ErrMalformed", err)
	}
	n = example(ids.NodeID{1}, 1)
	n.Attached[0].Addrs[1] = netip.MustParseAddr("fe80::1%eth0")
	if err := n.Validate(); !errors.Is(err, ErrMalformed) {
		t.Errorf("endpoint with zone: %v, want ErrMalformed", err)
	}
}

func TestParseRefusesOtherOrders(t *testing.T) {
	id := member(t, authority(t), "a")
	for name, swap := range map[string]func(*Node){
		"tunnels":  func(n *Node) { n.Tunnels[0], n.Tunnels[1] = n.Tunnels[1], n.Tunnels[0] },
		"networks": func(n *Node) { n.Networks[0], n.Networks[1] = n.Networks[1], n.Networks[0] },
		"subnets": func(n *Node) {
			s := n.Networks[0].Subnets
			s[0], s[1] = s[1], s[0]
		},
		"reserved": func(n *Node) {
			s := n.Networks[0].Reserved
			s[0], s[1] = s[1], s[0]
		},
		"services": func(n *Node) {
			s := n.Attached[1].Services
			s[0], s[1] = s[1], s[0]
		},
		"endpoints": func(n *Node) { n.Attached[0], n.Attached[1] = n.Attached[1], n.Attached[0] },
		"addresses": func(n *Node) {
			a := n.Attached[0].Addrs
			a[0], a[1] = a[1], a[0]
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := example(id.ID, 1).Canonical()
			swap(&n)
			body := encode(n)
			if _, err := Parse(append(body, make([]byte, keys.SignatureSize)...)); !errors.Is(err, ErrMalformed) {
				t.Errorf("Parse gave %v, want ErrMalformed", err)
			}
		})
	}
}

// TestEveryByteMatters alters every byte of a signed entry, its lowest bit, its
// highest and all of them: none of the results may be accepted.
func TestEveryByteMatters(t *testing.T) {
	a := authority(t)
	id := member(t, a, "a")
	good := entry(t, id, example(id.ID, 3))
	if _, err := Verify(a.Trust, noon, good, nil); err != nil {
		t.Fatal(err)
	}
	accepted, tried := 0, 0
	try := func(field *[]byte) {
		orig := *field
		for i := range orig {
			for _, mask := range []byte{0x01, 0x80, 0xff} {
				b := bytes.Clone(orig)
				b[i] ^= mask
				*field = b
				tried++
				if _, err := Verify(a.Trust, noon, good, nil); err == nil {
					accepted++
					t.Errorf("byte %d altered by %#x: accepted", i, mask)
				}
			}
		}
		*field = orig
	}
	try(&good.Record)
	try(&good.Credential.Cert)
	try(&good.Credential.Delegation)
	t.Logf("%d of %d altered entries accepted", accepted, tried)
}

func TestTruncatedAndExtended(t *testing.T) {
	id := member(t, authority(t), "a")
	raw := sign(t, example(id.ID, 3), id.Node)
	for i := range raw {
		if _, err := Parse(raw[:i]); !errors.Is(err, ErrMalformed) {
			t.Fatalf("Parse of the first %d bytes gave %v, want ErrMalformed", i, err)
		}
	}
	if _, err := Parse(append(bytes.Clone(raw), 0)); !errors.Is(err, ErrMalformed) {
		t.Errorf("Parse with a byte too many gave %v, want ErrMalformed", err)
	}
}

// TestCountsDoNotAllocate claims the largest counts in a short record.
func TestCountsDoNotAllocate(t *testing.T) {
	head := append([]byte(Domain), make([]byte, 16+8)...)
	head[len(Domain)] = 1 // a node ID
	for name, tail := range map[string][]byte{
		"networks":  {0, 0, 1, 0},
		"endpoints": {0, 0, 0, 0, 0x10, 0},
		"beyond":    {0, 0, 0, 0, 0xff, 0xff},
	} {
		raw := append(bytes.Clone(head), tail...)
		raw = append(raw, make([]byte, keys.SignatureSize)...)
		if n := testing.AllocsPerRun(10, func() { _, _ = Parse(raw) }); n > 12 {
			t.Errorf("%s: %v allocations", name, n)
		}
		if _, err := Parse(raw); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: Parse gave %v, want ErrMalformed", name, err)
		}
	}
}

func TestSignRefusesAnotherNodesID(t *testing.T) {
	a := authority(t)
	if _, err := Sign(example(member(t, a, "b").ID, 1), member(t, a, "a").Node); !errors.Is(err, ErrMalformed) {
		t.Errorf("Sign gave %v, want ErrMalformed", err)
	}
}

// TestVectors pins the format: an implementation in another language can
// check itself against testdata/record.hex.
func TestVectors(t *testing.T) {
	id := member(t, authority(t), "a")
	const path = "testdata/record.hex"
	raw := sign(t, example(id.ID, 0x0102030405060708), id.Node)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(wrap(hex.EncodeToString(raw))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(raw, want) {
		t.Errorf("the format has changed: it needs a new domain, or this is a bug\n got %x\nwant %x", raw, want)
	}
}

func wrap(s string) string {
	var b strings.Builder
	for len(s) > 64 {
		b.WriteString(s[:64] + "\n")
		s = s[64:]
	}
	return b.String() + s + "\n"
}

func FuzzParse(f *testing.F) {
	id := member(f, authority(f), "a")
	f.Add(sign(f, Node{ID: id.ID}, id.Node))
	f.Add(sign(f, example(id.ID, 3), id.Node))
	f.Add([]byte(Domain))
	f.Fuzz(func(t *testing.T, raw []byte) {
		n, err := Parse(raw)
		if err != nil {
			if !errors.Is(err, ErrMalformed) {
				t.Fatalf("error is not ErrMalformed: %v", err)
			}
			return
		}
		if !bytes.Equal(Encode(n), raw[:len(raw)-keys.SignatureSize]) {
			t.Fatal("accepted record re-encodes to other bytes")
		}
		if err := n.Validate(); err != nil {
			t.Fatalf("accepted record is not valid: %v", err)
		}
	})
}

func FuzzCutEntry(f *testing.F) {
	id := member(f, authority(f), "a")
	f.Add(AppendEntry(nil, entry(f, id, example(id.ID, 3))))
	f.Add(AppendEntry(nil, Entry{}))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, rest, err := CutEntry(b)
		if err != nil {
			return
		}
		if again := append(AppendEntry(nil, e), rest...); !bytes.Equal(again, b) {
			t.Fatal("entry re-encodes to other bytes")
		}
		if EntrySize(e) != len(b)-len(rest) {
			t.Fatal("EntrySize is wrong")
		}
	})
}
