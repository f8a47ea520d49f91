package ids

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
)

// NodeID names a node: the first 16 bytes of
// SHA-256("so-node-v1" || Ed25519 identity public key). It is also the node's
// memberlist name, so a certificate for another key can never carry it.
type NodeID [16]byte

const nodeIDDomain = "so-node-v1"

// nodeIDText is base32 in lower case without padding: 26 characters that are
// valid in file names, host names and interface aliases.
var nodeIDText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// NodeIDOf derives the ID from a 32-byte Ed25519 identity public key.
func NodeIDOf(identity [32]byte) NodeID {
	sum := sha256.Sum256(append([]byte(nodeIDDomain), identity[:]...))
	return NodeID(sum[:16])
}

// ParseNodeID reads the 26-character text form that String prints. The error
// does not repeat the input.
func ParseNodeID(s string) (NodeID, error) {
	raw, err := nodeIDText.DecodeString(s)
	if err != nil || len(raw) != len(NodeID{}) || nodeIDText.EncodeToString(raw) != s {
		return NodeID{}, fmt.Errorf("parse node ID: want 26 characters a-z, 2-7, have %d characters", len(s))
	}
	return NodeID(raw), nil
}

// String returns the 26-character text form.
func (n NodeID) String() string { return nodeIDText.EncodeToString(n[:]) }

// Short returns the first six characters of the text form, for device names
// and tables. It identifies a node to a person, never to the protocol.
func (n NodeID) Short() string { return n.String()[:6] }

// IsZero reports whether n is the zero value, which names no node.
func (n NodeID) IsZero() bool { return n == NodeID{} }

// Compare orders IDs by their bytes: -1, 0 or +1. The lower ID of a pair
// initiates its tunnel handshakes (DESIGN.md section 5).
func (n NodeID) Compare(o NodeID) int { return bytes.Compare(n[:], o[:]) }

// MarshalText implements encoding.TextMarshaler.
func (n NodeID) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (n *NodeID) UnmarshalText(b []byte) error {
	id, err := ParseNodeID(string(b))
	if err != nil {
		return err
	}
	*n = id
	return nil
}

// InnerAddr is the node's IPv6 address inside the secure namespace and its
// virtual address for gossip: 0xfd (RFC 4193 unique local) followed by the
// first 15 bytes of the ID. Derived, so it needs no allocation.
func (n NodeID) InnerAddr() netip.Addr {
	var a [16]byte
	a[0] = 0xfd
	copy(a[1:], n[:15])
	return netip.AddrFrom16(a)
}

// ClusterID names a cluster: 16 random bytes chosen by init.
type ClusterID [16]byte

// String returns 32 hexadecimal characters.
func (c ClusterID) String() string { return hex.EncodeToString(c[:]) }

// MarshalText implements encoding.TextMarshaler.
func (c ClusterID) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (c *ClusterID) UnmarshalText(b []byte) error {
	raw, err := hex.DecodeString(string(b))
	if err != nil || len(raw) != len(c) {
		return fmt.Errorf("parse cluster ID: want 32 hexadecimal characters, have %d characters", len(b))
	}
	copy(c[:], raw)
	return nil
}

// VNI is a VXLAN network identifier (RFC 7348): 24 bits, zero excluded.
type VNI uint32

// MaxVNI is the largest VNI that fits the 24-bit field.
const MaxVNI VNI = 1<<24 - 1

// Valid reports whether v is in 1..MaxVNI.
func (v VNI) Valid() bool { return v >= 1 && v <= MaxVNI }

// String returns the decimal form.
func (v VNI) String() string { return strconv.FormatUint(uint64(v), 10) }

// DeriveVNI gives a network without a configured VNI its number: 24 bits of
// SHA-256("so-vni-v1" || name), moved out of 0..4095, where people pin theirs.
// Every node derives the same number from the same name; two names that
// collide are refused by config and, across nodes, by the agent.
func DeriveVNI(name string) VNI {
	sum := sha256.Sum256([]byte("so-vni-v1" + name))
	v := VNI(sum[0])<<16 | VNI(sum[1])<<8 | VNI(sum[2])
	if v < 4096 {
		v += 4096
	}
	return v
}

// Epoch numbers a generation of tunnel keys. The first is 1; zero means none.
type Epoch uint32

// Lane numbers one of the parallel tunnel devices of an epoch. Today every
// epoch has lane 0 only; names, ports and records leave room for more.
type Lane uint8

// Revision numbers a desired state; it grows by one with each change.
type Revision uint64

// MAC is a 48-bit Ethernet address. Unlike net.HardwareAddr it is comparable.
type MAC [6]byte

// String returns the colon form.
func (m MAC) String() string {
	parts := make([]string, len(m))
	for i, b := range m {
		parts[i] = hex.EncodeToString([]byte{b})
	}
	return strings.Join(parts, ":")
}

// ParseMAC reads six hexadecimal octets joined by colons.
func ParseMAC(s string) (MAC, error) {
	var m MAC
	raw, err := hex.DecodeString(strings.ReplaceAll(s, ":", ""))
	if err != nil || len(raw) != len(m) || MAC(raw).String() != strings.ToLower(s) {
		return m, fmt.Errorf("parse MAC %q: want six octets such as 02:00:5e:10:00:01", s)
	}
	return MAC(raw), nil
}

// MarshalText implements encoding.TextMarshaler.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *MAC) UnmarshalText(b []byte) error {
	v, err := ParseMAC(string(b))
	if err != nil {
		return err
	}
	*m = v
	return nil
}

// EndpointMAC derives the MAC of an endpoint from its network and address:
// locally administered unicast, 46 bits of SHA-256("so-mac-v1" || VNI || IP).
// A container that is re-created with its address keeps its MAC, so no peer
// holds a stale neighbour entry.
func EndpointMAC(vni VNI, ip netip.Addr) MAC {
	buf := append([]byte("so-mac-v1"), byte(vni>>16), byte(vni>>8), byte(vni))
	b := ip.Unmap().AsSlice()
	sum := sha256.Sum256(append(buf, b...))
	m := MAC(sum[:6])
	m[0] = m[0]&^0x01 | 0x02
	return m
}

// SPI is the security parameters index of an ESP security association (RFC
// 4303 section 2.1), chosen by its receiver. 0 means none; 1 to 255 are
// reserved by IANA.
type SPI uint32

// MinSPI is the lowest index that a security association may have.
const MinSPI SPI = 256

// Valid reports whether s may name a security association.
func (s SPI) Valid() bool { return s >= MinSPI }

// String returns eight hexadecimal digits behind 0x, as ip-xfrm(8) prints it.
func (s SPI) String() string { return fmt.Sprintf("0x%08x", uint32(s)) }
