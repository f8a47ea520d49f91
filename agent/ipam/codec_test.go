package ipam

import (
	"bytes"
	"errors"
	"flag"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/test/protocol"
)

var update = flag.Bool("update", false, "rewrite the vectors in PROTOCOL.md")

var equal = cmp.Options{cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty()}

func block(network, prefix string) Block { return Block{network, netip.MustParsePrefix(prefix)} }

var (
	askVector = Ask{Voters: electorate([]Voter{{ID: ids.NodeID{1}}, {ID: ids.NodeID{2}}}).Hash, Seq: 1001,
		Blocks: []Block{block("blue", "10.77.0.0/26"), block("blue", "fd00:77::/122")}}
	ansVector = Answer{Seq: 7, Verdicts: []ForBlock{{}, {Refused, ids.NodeID{3}}}}
)

func TestProtocolVectors(t *testing.T) {
	protocol.Check(t, "claim", map[string][]byte{
		"ask":     askVector.Encode(),
		"answer":  ansVector.Encode(),
		"differs": Answer{Code: Differs, Seq: 7}.Encode(),
	}, *update)
}

func TestRoundTrip(t *testing.T) {
	large := Ask{Seq: 1}
	for i := range MaxAsk {
		large.Blocks = append(large.Blocks, Block{strings.Repeat("x", maxName),
			netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, 1: byte(i)}), 48)})
	}
	if n := len(large.Encode()); n != MaxAskSize {
		t.Errorf("largest request has %d bytes, MaxAskSize is %d", n, MaxAskSize)
	}
	if MaxAskSize != 21_034 {
		t.Errorf("MaxAskSize is %d: correct its comment and PROTOCOL.md", MaxAskSize)
	}
	for _, a := range []Ask{{}, askVector, large} {
		got, err := ParseAsk(a.Encode())
		if diff := cmp.Diff(a, got, equal...); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	}
	for _, a := range []Answer{{}, {Code: Differs, Seq: 9}, ansVector, {Verdicts: []ForBlock{{Verdict: Later}, {Verdict: Full}}}} {
		got, err := ParseAnswer(a.Encode())
		if diff := cmp.Diff(a, got, equal...); err != nil || diff != "" {
			t.Errorf("%v\n%s", err, diff)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	good := askVector.Encode()
	swapped := askVector
	swapped.Blocks = []Block{askVector.Blocks[1], askVector.Blocks[0]}
	twice := askVector
	twice.Blocks = []Block{askVector.Blocks[0], askVector.Blocks[0]}
	change := func(b []byte, at int, to byte) []byte {
		b = bytes.Clone(b)
		b[at] = to
		return b
	}
	for name, b := range map[string][]byte{
		"nothing":          nil,
		"short":            good[:len(good)-1],
		"long":             append(bytes.Clone(good), 0),
		"too many":         change(good, askHead-2, 2),
		"no name":          change(good, askHead, 0),
		"long name":        change(good, askHead, 64),
		"name with space":  change(good, askHead+1, ' '),
		"family":           change(good, askHead+5, 5),
		"host bits":        change(good, askHead+9, 1),
		"multicast":        change(good, askHead+6, 224),
		"length":           change(good, askHead+10, 33),
		"other order":      swapped.Encode(),
		"one block twice":  twice.Encode(),
		"IPv4 within IPv6": Ask{Blocks: []Block{{"blue", netip.PrefixFrom(netip.AddrFrom16([16]byte{10: 0xff, 11: 0xff, 12: 10}), 122)}}}.Encode(),
	} {
		if a, err := ParseAsk(b); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
	ans := ansVector.Encode()
	for name, b := range map[string][]byte{
		"nothing":           nil,
		"short":             ans[:len(ans)-1],
		"long":              append(bytes.Clone(ans), 0),
		"code":              change(ans, 0, 2),
		"verdicts, differs": change(ans, 0, byte(Differs)),
		"verdict":           change(ans, ansHead, byte(Full)+1),
		"no holder":         change(ans, len(ans)-16, 0),
		"too many":          change(ans, 9, 0xff),
	} {
		if a, err := ParseAnswer(b); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: %+v, %v", name, a, err)
		}
	}
}

func FuzzParseAsk(f *testing.F) {
	f.Add(askVector.Encode())
	f.Add(Ask{}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ParseAsk(b)
		if err != nil {
			if !errors.Is(err, ErrMessage) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(a.Encode(), b) {
			t.Fatal("accepted request encodes to other bytes")
		}
	})
}

func FuzzParseAnswer(f *testing.F) {
	f.Add(ansVector.Encode())
	f.Add(Answer{Code: Differs}.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := ParseAnswer(b)
		if err != nil {
			if !errors.Is(err, ErrMessage) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(a.Encode(), b) {
			t.Fatal("accepted answer encodes to other bytes")
		}
	})
}
