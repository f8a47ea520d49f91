package nl

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	rtnl "github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// family asks generic netlink for a family by name, which every kernel answers.
func family(k *Keyed, name string, reply func([]byte)) error {
	body := []byte{unix.CTRL_CMD_GETFAMILY, 1, 0, 0, byte(4 + len(name) + 1), 0, unix.CTRL_ATTR_FAMILY_NAME, 0}
	body = append(append(body, name...), make([]byte, 4-len(name)%4)...)
	return k.Do(unix.GENL_ID_CTRL, body, reply)
}

func TestKeyed(t *testing.T) {
	requireRoot(t)
	here, err := CurrentNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = here.Close() }()
	k, err := here.Keyed(unix.NETLINK_GENERIC)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	answers, named := 0, false
	if err := family(k, "nlctrl", func(m []byte) {
		answers++
		named = bytes.Contains(m, []byte("nlctrl\x00"))
	}); err != nil || answers != 1 || !named {
		t.Errorf("family nlctrl: %v, %d answers, named %v", err, answers, named)
	}
	if err := family(k, "nobody", func([]byte) { t.Error("an answer about nobody") }); !errors.Is(err, unix.ENOENT) || !IsNotExist(err) {
		t.Errorf("family nobody: %v", err)
	}
	families := 0
	body := []byte{unix.CTRL_CMD_GETFAMILY, 1, 0, 0}
	if err := k.Dump(unix.GENL_ID_CTRL, body, func([]byte) { families++ }); err != nil || families == 0 {
		t.Errorf("dump: %v, %d families", err, families)
	}
	if len(bytes.Trim(k.buf, "\x00")) != 0 {
		t.Error("the buffer still holds an answer")
	}
	if _, err := here.Keyed(31); !IsNotSupported(err) {
		t.Errorf("a protocol that does not exist: %v", err)
	}
}

// message makes a netlink message.
func message(typ, flags uint16, seq uint32, data []byte) []byte {
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+len(data)))
	b = binary.NativeEndian.AppendUint16(b, typ)
	b = binary.NativeEndian.AppendUint16(b, flags)
	b = binary.NativeEndian.AppendUint32(b, seq)
	b = append(binary.NativeEndian.AppendUint32(b, 0), data...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func TestKeyedAnswers(t *testing.T) {
	const seq = 7
	words := func(errno int32, text string) []byte {
		b := binary.NativeEndian.AppendUint32(nil, uint32(-errno))
		b = append(b, make([]byte, unix.SizeofNlMsghdr)...)
		return append(b, rtnl.NewRtAttr(unix.NLMSGERR_ATTR_MSG, rtnl.ZeroTerminated(text)).Serialize()...)
	}
	ok := message(unix.NLMSG_ERROR, 0, seq, make([]byte, 4+unix.SizeofNlMsghdr))
	for name, c := range map[string]struct {
		datagram    []byte
		replies     string
		done        bool
		interrupted bool
		err         error
		says        string
	}{
		"done":        {datagram: ok, done: true},
		"answer":      {datagram: append(message(0x10, 0, seq, []byte("one.")), ok...), replies: "one.", done: true},
		"old request": {datagram: append(message(0x10, 0, seq-1, []byte("old.")), message(unix.NLMSG_ERROR, 0, seq-1, words(1, "x"))...)},
		"to go on":    {datagram: append(message(0x10, 2, seq, []byte("one.")), message(0x10, 2, seq, []byte("two."))...), replies: "one.two."},
		"interrupted": {datagram: message(0x10, unix.NLM_F_DUMP_INTR, seq, []byte("one.")), replies: "one.", interrupted: true},
		"end of list": {datagram: message(unix.NLMSG_DONE, 2, seq, make([]byte, 4)), done: true},
		"refused":     {datagram: message(unix.NLMSG_ERROR, 0, seq, words(int32(unix.EEXIST), "")[:20]), done: true, err: unix.EEXIST},
		"with a reason": {
			datagram: message(unix.NLMSG_ERROR, unix.NLM_F_CAPPED|unix.NLM_F_ACK_TLVS, seq, words(int32(unix.EINVAL), "Bad thing")),
			done:     true, err: unix.EINVAL, says: "Bad thing",
		},
	} {
		x := &Keyed{seq: seq}
		var got strings.Builder
		interrupted := false
		done, err := x.take(c.datagram, func(m []byte) { got.Write(m) }, &interrupted)
		if done != c.done || interrupted != c.interrupted || got.String() != c.replies || !errors.Is(err, c.err) || (err != nil && !strings.Contains(err.Error(), c.says)) {
			t.Errorf("%s: done %v, interrupted %v, replies %q, error %v", name, done, interrupted, got.String(), err)
		}
	}
	for _, bad := range [][]byte{{1, 2, 3}, message(unix.NLMSG_ERROR, 0, seq, nil)} {
		interrupted := false
		if _, err := (&Keyed{seq: seq}).take(bad, nil, &interrupted); err == nil {
			t.Errorf("%x was taken", bad)
		}
	}
}

// FuzzKeyedAnswers gives take what no kernel would send.
func FuzzKeyedAnswers(f *testing.F) {
	f.Add(message(0x10, unix.NLM_F_DUMP_INTR, 7, []byte("answer")))
	f.Add(message(unix.NLMSG_ERROR, unix.NLM_F_CAPPED|unix.NLM_F_ACK_TLVS, 7, make([]byte, 40)))
	f.Fuzz(func(_ *testing.T, datagram []byte) {
		interrupted := false
		_, _ = (&Keyed{seq: 7}).take(datagram, func([]byte) {}, &interrupted)
	})
}
