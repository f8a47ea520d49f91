package noisenet

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"testing"

	"github.com/hashicorp/go-msgpack/v2/codec"
)

// TestDeliver: what another member has carried on is checked like anything else.
func TestDeliver(t *testing.T) {
	tr := New(Config{})
	const again = 4 // asks to be carried on
	for packet, ok := range map[string]bool{
		"\x00ping": true, "\x08user": true, "\x09compressed": false, "\x07\x01": false, "": false,
		"\x08\x04user": false, string(crc([]byte("\x08\x04user"))): false, string(compound([]byte{mlPing}, []byte("\x08\x04user"))): false,
	} {
		if err := tr.Deliver([]byte(packet), again); (err == nil) != ok {
			t.Errorf("%q: %v", packet, err)
		}
	}
	if n := len(tr.PacketCh()); n != 2 {
		t.Errorf("%d packets are delivered, want 2", n)
	}
}

func compound(parts ...[]byte) []byte {
	b := []byte{mlCompound, byte(len(parts))}
	for _, p := range parts {
		b = binary.BigEndian.AppendUint16(b, uint16(len(p)))
	}
	return append(b, bytes.Join(parts, nil)...)
}

func crc(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{mlHasCRC}, crc32.ChecksumIEEE(b)), b...)
}

func TestCheckPacket(t *testing.T) {
	ping, alive := []byte{mlPing, 0x80}, []byte{mlAlive, 0x80}
	for name, tc := range map[string]struct {
		b  []byte
		ok bool
	}{
		"ping":                    {ping, true},
		"user":                    {[]byte{mlUser}, true},
		"compound":                {compound(ping, alive), true},
		"compound of none":        {compound(), true},
		"CRC":                     {crc(ping), true},
		"CRC of compound":         {crc(compound(ping, alive)), true},
		"empty":                   {nil, false},
		"push/pull":               {[]byte{mlPushPull}, false},
		"compressed":              {[]byte{9, 0x80}, false},
		"encrypted":               {[]byte{10, 0x80}, false},
		"label":                   {[]byte{244, 1, 'x', mlPing}, false},
		"error":                   {[]byte{mlError}, false},
		"unknown":                 {[]byte{14}, false},
		"short CRC":               {[]byte{mlHasCRC, 0, 0}, false},
		"CRC of nothing":          {crc(nil), false},
		"CRC of CRC":              {crc(crc(ping)), false},
		"CRC in compound":         {compound(crc(ping)), false},
		"compound in compound":    {compound(compound(ping)), false},
		"compressed in compound":  {compound(ping, []byte{9}), false},
		"compressed in CRC":       {crc([]byte{9}), false},
		"empty part":              {compound(ping, nil), false},
		"compound with a rest":    {append(compound(ping), 1), false},
		"compound cut":            {compound(ping, alive)[:7], false},
		"compound without count":  {[]byte{mlCompound}, false},
		"compound without length": {[]byte{mlCompound, 200, 0, 1}, false},
	} {
		err := checkPacket(tc.b)
		if (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}

type pushPullHeader struct {
	Nodes        int
	UserStateLen int
	Join         bool
}

// streamHead is how many bytes checkStream may ask for before it decides: a
// peer cannot make it hold more.
const streamHead = 48

type userHeader struct{ UserMsgLen int }

func head(t *testing.T, kind byte, v any) []byte {
	t.Helper()
	b := bytes.NewBuffer([]byte{kind})
	if err := codec.NewEncoder(b, &codec.MsgpackHandle{}).Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestCheckStream encodes heads as memberlist does.
func TestCheckStream(t *testing.T) {
	for name, tc := range map[string]struct {
		b  []byte
		ok bool
	}{
		"ping":            {[]byte{mlPing}, true},
		"ack":             {[]byte{mlAck}, true},
		"error":           {[]byte{mlError}, true},
		"small":           {head(t, mlPushPull, pushPullHeader{3, 100, true}), true},
		"large":           {head(t, mlPushPull, pushPullHeader{maxStreamNodes, MaxMessage, false}), true},
		"two bytes":       {head(t, mlPushPull, pushPullHeader{300, 70000, false}), true},
		"nodes":           {head(t, mlPushPull, pushPullHeader{maxStreamNodes + 1, 0, false}), false},
		"state":           {head(t, mlPushPull, pushPullHeader{1, MaxMessage + 1, false}), false},
		"huge":            {head(t, mlPushPull, pushPullHeader{1, 1 << 40, false}), false},
		"negative nodes":  {head(t, mlPushPull, pushPullHeader{-1, 0, false}), false},
		"negative state":  {head(t, mlPushPull, pushPullHeader{0, -70000, false}), false},
		"user":            {head(t, mlUser, userHeader{MaxMessage}), true},
		"user too large":  {head(t, mlUser, userHeader{MaxMessage + 1}), false},
		"other order":     {[]byte("\x06\x83\xa5Nodes\x01\xa4Join\xc2\xacUserStateLen\x00"), false},
		"array":           {[]byte("\x06\x93\xc2\x01\x00"), false},
		"nil for a count": {[]byte("\x06\x83\xa4Join\xc2\xa5Nodes\xc0"), false},
		"compressed":      {[]byte{9}, false},
		"encrypted":       {[]byte{10}, false},
		"compound":        {[]byte{mlCompound, 1}, false},
		"label":           {[]byte{244}, false},
	} {
		// All prefixes of an accepted head ask for more, or are accepted.
		for n := range tc.b {
			if err := checkStream(tc.b[:n]); tc.ok && err != nil && !errors.Is(err, errShort) {
				t.Errorf("%s: %d bytes: %v", name, n, err)
			}
		}
		if err := checkStream(tc.b); (err == nil) != tc.ok || errors.Is(err, errShort) {
			t.Errorf("%s: %v", name, err)
		}
		if len(tc.b) > streamHead {
			t.Errorf("%s: head of %d bytes, more than streamHead", name, len(tc.b))
		}
	}
}
