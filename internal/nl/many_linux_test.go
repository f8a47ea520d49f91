package nl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDoMany: each of hundreds of requests gets its own verdict, in order, whatever
// becomes of its neighbours.
func TestDoMany(t *testing.T) {
	requireRoot(t)
	path := filepath.Join(t.TempDir(), "ns")
	ns, err := CreateNamespace(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := errors.Join(ns.Close(), RemoveNamespace(path)); err != nil {
			t.Error(err)
		}
	}()
	h, err := ns.Handle()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	k, err := ns.Keyed(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	const links = 150
	var reqs []Request
	for i := range links {
		name := fmt.Sprintf("br%d", i)
		if i%3 == 1 {
			name = "br0" // is there already
		}
		reqs = append(reqs, addBridge(name))
	}
	for i, err := range k.DoMany(reqs) {
		if i%3 == 1 && !errors.Is(err, unix.EEXIST) || i%3 != 1 && err != nil {
			t.Errorf("request %d: %v", i, err)
		}
	}
	list, err := h.LinkList()
	if err != nil || len(list) != 1+links-links/3 {
		t.Errorf("%d links, %v", len(list), err)
	}
	if errs := k.DoMany(nil); len(errs) != 0 {
		t.Errorf("nothing: %v", errs)
	}
	if err := k.Do(unix.RTM_NEWLINK, addBridge("last").Body, nil); err == nil {
		t.Error("without the flag that makes it a link is made")
	}
}

// addBridge is a request for a bridge.
func addBridge(name string) Request {
	attr := func(typ uint16, data []byte) []byte {
		b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(data)))
		b = append(binary.NativeEndian.AppendUint16(b, typ), data...)
		return append(b, make([]byte, (4-len(b)%4)%4)...)
	}
	body := make([]byte, unix.SizeofIfInfomsg)
	body = append(body, attr(unix.IFLA_IFNAME, append([]byte(name), 0))...)
	body = append(body, attr(unix.IFLA_LINKINFO, attr(unix.IFLA_INFO_KIND, []byte("bridge")))...)
	return Request{Type: unix.RTM_NEWLINK, Flags: unix.NLM_F_CREATE | unix.NLM_F_EXCL, Body: body}
}
