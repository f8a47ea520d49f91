package wguser

import (
	"fmt"
	"reflect"
	"unsafe"

	"golang.zx2c4.com/wireguard/conn"
)

// familyBind is wireguard-go's bind with what it reuses between packets kept apart by
// family. As it is, a packet to an IPv6 address that is sent after one to an
// IPv4 address goes to the first 4 bytes of its address and whatever the other 12
// were before (StdNetBind.Send copies into a slice of 4 bytes and then makes it longer;
// https://github.com/WireGuard/wireguard-go/pull/135, open). On a host with peers of both families
// a new tunnel then never comes up.
//
// So packets to IPv6 go through a second bind, which has the first one's IPv6
// socket and its own buffers.
type familyBind struct {
	conn.Bind
	six *conn.StdNetBind
}

func newBind() conn.Bind { return &familyBind{Bind: conn.NewStdNetBind()} }

// Open implements conn.Bind.
func (b *familyBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	fns, port, err := b.Bind.Open(port)
	if err != nil {
		return nil, 0, err
	}
	six, err := shareIPv6(b.Bind)
	if err != nil {
		_ = b.Close()
		return nil, 0, err
	}
	b.six = six
	return fns, port, nil
}

// Send implements conn.Bind.
func (b *familyBind) Send(bufs [][]byte, to conn.Endpoint) error {
	if to.DstIP().Is6() {
		return b.six.Send(bufs, to)
	}
	return b.Bind.Send(bufs, to)
}

// shareIPv6 makes a bind that sends through the IPv6 socket of another, which closes
// it. The fields are not exported: should they change with a version of
// wireguard-go no tunnel is made, rather than one that loses packets.
func shareIPv6(of conn.Bind) (*conn.StdNetBind, error) {
	six, ok := conn.NewStdNetBind().(*conn.StdNetBind)
	from := reflect.ValueOf(of)
	if !ok || from.Type() != reflect.TypeFor[*conn.StdNetBind]() {
		return nil, fmt.Errorf("share the IPv6 socket: wireguard-go's bind is a %T", of)
	}
	for _, name := range []string{"ipv6", "ipv6PC", "ipv6TxOffload"} {
		src, dst := from.Elem().FieldByName(name), reflect.ValueOf(six).Elem().FieldByName(name)
		if !src.IsValid() {
			return nil, fmt.Errorf("share the IPv6 socket: wireguard-go's bind has no field %s", name)
		}
		open := func(v reflect.Value) reflect.Value {
			return reflect.NewAt(v.Type(), unsafe.Pointer(v.UnsafeAddr())).Elem() //nolint:gosec // of the field's own type
		}
		open(dst).Set(open(src))
	}
	return six, nil
}
