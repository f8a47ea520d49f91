package tunneltest

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/net/ipv6"

	"github.com/secure-overlay/secure-overlay/internal/nft"
)

// Marks by which routers say that they are congested (ECN, RFC 3168): the last two bits of the
// traffic class.
const (
	notECT     = 0
	ect0       = 2
	experience = 3 // congestion experienced (CE)
	markBits   = 3
)

// testMarks sends marked packets both ways, and then through a router that marks what may be
// marked: the outer packet has the mark of the inner one, and the inner one gets that of the
// outer one (RFC 6040).
func testMarks(t *testing.T, h Harness) {
	m := newTunnels(t, h, 2)
	sockets := []*socket{m.listen(0), m.listen(1)}
	sockets[0].deliver(sockets[1], []byte("before"))
	for _, c := range []struct {
		congested bool
		want      map[int]int // by mark that is sent
	}{
		{false, map[int]int{notECT: notECT, ect0: ect0, experience: experience}},
		// That not-ECT is left alone shows that the outer packet says so, too.
		{true, map[int]int{notECT: notECT, ect0: experience}},
	} {
		if c.congested {
			for i := range m.hosts {
				m.congest(i)
			}
		}
		for i, from := range sockets {
			for sent, want := range c.want {
				if got := from.mark(sockets[1-i], sent); got != want {
					t.Errorf("from host %d, congested %v: mark %d arrives as %d, want %d", i, c.congested, sent, got, want)
				}
			}
		}
	}
}

// mark sends packets with a mark until one arrives, and returns with which.
func (s *socket) mark(to *socket, mark int) int {
	s.t.Helper()
	in, out := ipv6.NewPacketConn(to.PacketConn), ipv6.NewPacketConn(s.PacketConn)
	if err := in.SetControlMessage(ipv6.FlagTrafficClass, true); err != nil {
		s.t.Fatal(err)
	}
	want := fmt.Sprintf("marked %d at %d", mark, time.Now().UnixNano())
	buf := make([]byte, 1500)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		if _, err := out.WriteTo([]byte(want), &ipv6.ControlMessage{TrafficClass: mark}, to.LocalAddr()); err != nil {
			s.t.Fatal(err)
		}
		if err := to.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
			s.t.Fatal(err)
		}
		for {
			n, cm, _, err := in.ReadFrom(buf)
			if err != nil {
				break // nothing has arrived in time
			}
			if string(buf[:n]) == want && cm != nil {
				return cm.TrafficClass & markBits
			}
		}
	}
	s.t.Fatalf("nothing arrived that was sent with mark %d", mark)
	return 0
}

// congest marks what arrives over IPv4 at a host and may be marked, as a congested router does.
func (m *mesh) congest(i int) {
	m.t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(m.hosts[i].Env.Host.FD()))
	if err != nil {
		m.t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "congested"})
	const tos, checksum = 1, 10 // where they are in the IPv4 header
	may := []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: tos, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{markBits}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{ect0}},
	}
	// Two bytes, as the checksum counts them.
	marked := []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: tos - 1, Len: 2},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0xff, 0xff &^ markBits}, Xor: []byte{0, experience}},
		&expr.Payload{
			OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: tos - 1, Len: 2,
			CsumType: expr.CsumTypeInet, CsumOffset: checksum,
		},
	}
	nft.Add(c, table, []nft.Chain{{
		Name: "arriving", Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityMangle,
		Policy: nftables.ChainPolicyAccept, Rules: [][]expr.Any{nft.Join(may, marked)},
	}})
	if err := c.Flush(); err != nil {
		m.t.Fatalf("congest host %d: %v", i, err)
	}
}
