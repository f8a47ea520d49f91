package keys

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// ErrMalformed is wrapped by every decoder's error: the bytes are not the
// canonical form of the object. The error names the field, never its content.
var ErrMalformed = errors.New("malformed")

// Times on the wire are unix seconds in a u64. The range keeps out values
// that other software cannot represent or that can only be an accident.
const (
	minTime = 946684800    // 2000-01-01T00:00:00Z
	maxTime = 253402300799 // 9999-12-31T23:59:59Z
)

// reader takes a message apart front to back. After the first failure every
// further read gives zero values, and done reports that failure.
type reader struct {
	what string
	b    []byte
	err  error
}

func (r *reader) fail(field string) {
	if r.err == nil {
		r.err = fmt.Errorf("parse %s: %s: %w", r.what, field, ErrMalformed)
	}
	r.b = nil
}

func (r *reader) take(n int, field string) []byte {
	if r.err != nil || len(r.b) < n {
		r.fail(field)
		return make([]byte, n) // n is a small constant or checked length
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) domain(d string) {
	if string(r.take(len(d), "domain")) != d {
		r.fail("domain")
	}
}

func (r *reader) u8(field string) uint8   { return r.take(1, field)[0] }
func (r *reader) u16(field string) uint16 { return binary.BigEndian.Uint16(r.take(2, field)) }
func (r *reader) u32(field string) uint32 { return binary.BigEndian.Uint32(r.take(4, field)) }
func (r *reader) u64(field string) uint64 { return binary.BigEndian.Uint64(r.take(8, field)) }

func (r *reader) key(field string) [32]byte { return [32]byte(r.take(32, field)) }

func (r *reader) signature() [SignatureSize]byte {
	return [SignatureSize]byte(r.take(SignatureSize, "signature"))
}

// window reads a validity period and refuses an empty or a senseless one.
func (r *reader) window() (notBefore, notAfter time.Time) {
	from, to := r.u64("not-before"), r.u64("not-after")
	if r.err == nil && !validWindow(from, to) {
		r.fail("validity period")
	}
	return time.Unix(int64(from), 0).UTC(), time.Unix(int64(to), 0).UTC()
}

func validWindow(from, to uint64) bool {
	return from >= minTime && to <= maxTime && from < to
}

func (r *reader) hostname() string {
	n := int(r.u8("hostname"))
	if r.err != nil || n > maxHostname {
		r.fail("hostname")
		return ""
	}
	name := string(r.take(n, "hostname"))
	if r.err == nil && ValidHostname(name) != nil {
		r.fail("hostname")
	}
	return name
}

// addrPorts reads a count of at most max and that many addresses.
func (r *reader) addrPorts(limit int) []netip.AddrPort {
	n := int(r.u8("address count"))
	if n > limit {
		r.fail("address count")
	}
	var out []netip.AddrPort
	for i := 0; i < n && r.err == nil; i++ {
		var ip netip.Addr
		switch r.u8("address family") {
		case 4:
			ip = netip.AddrFrom4([4]byte(r.take(4, "address")))
		case 6:
			ip = netip.AddrFrom16([16]byte(r.take(16, "address")))
		default:
			r.fail("address family")
		}
		a := netip.AddrPortFrom(ip, r.u16("port"))
		if r.err == nil && !validSeed(a) {
			r.fail("address")
		}
		out = append(out, a)
	}
	return out
}

// done returns the first failure; bytes left over are one.
func (r *reader) done() error {
	if r.err == nil && len(r.b) != 0 {
		r.fail("trailing bytes")
	}
	return r.err
}

// validSeed reports whether a can be dialled from anywhere and has one
// spelling only: no zone, no IPv4 inside IPv6, not "any", not multicast.
func validSeed(a netip.AddrPort) bool {
	ip := a.Addr()
	return ip.IsValid() && a.Port() != 0 && ip.Zone() == "" && !ip.Is4In6() &&
		!ip.IsUnspecified() && !ip.IsMulticast()
}

func validSeeds(seeds []netip.AddrPort, limit int) error {
	if len(seeds) > limit {
		return fmt.Errorf("%d seed addresses, at most %d fit", len(seeds), limit)
	}
	for _, a := range seeds {
		if !validSeed(a) {
			return fmt.Errorf("seed address %v: want a unicast address without zone, and a port", a)
		}
	}
	return nil
}

func appendSeeds(b []byte, seeds []netip.AddrPort) []byte {
	b = append(b, uint8(len(seeds)))
	for _, a := range seeds {
		family := uint8(6)
		if a.Addr().Is4() {
			family = 4
		}
		b = append(append(b, family), a.Addr().AsSlice()...)
		b = binary.BigEndian.AppendUint16(b, a.Port())
	}
	return b
}

func appendHostname(b []byte, name string) []byte {
	return append(append(b, uint8(len(name))), name...)
}

func appendTime(b []byte, t time.Time) []byte {
	return binary.BigEndian.AppendUint64(b, uint64(t.Unix()))
}

func checkWindow(from, to time.Time) error {
	if from.Unix() < 0 || to.Unix() < 0 || !validWindow(uint64(from.Unix()), uint64(to.Unix())) {
		return errors.New("validity period: not-after is not behind not-before, or a year is outside 2000..9999")
	}
	return nil
}

// maxHostname is the longest hostname in bytes: one DNS label (RFC 1035), and
// also what Linux allows for a host (64 with the final zero byte).
const maxHostname = 63

// ValidHostname returns an error unless name can stand in a certificate: 1 to
// 63 letters, digits, '-', '_' and '.', a letter or digit at both ends and on
// both sides of a dot. The narrow set keeps names harmless in terminals, logs
// and file names.
func ValidHostname(name string) error {
	if len(name) < 1 || len(name) > maxHostname {
		return fmt.Errorf("hostname: want 1 to %d characters, have %d", maxHostname, len(name))
	}
	for i := range len(name) {
		c := name[i]
		inner := i > 0 && i < len(name)-1
		switch {
		case alphanumeric(c):
		case inner && (c == '-' || c == '_'):
		case inner && c == '.' && alphanumeric(name[i-1]) && alphanumeric(name[i+1]):
		default:
			return fmt.Errorf("hostname: character %d: want letters, digits, '-', '_' and '.', with a letter or digit at both ends", i+1)
		}
	}
	return nil
}

func alphanumeric(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}
