package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/membership/membertest"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
)

// accuse sends messages about the others to all of them: they are dead, suspect, gone of
// their own will, or elsewhere. Each number is above the one before, so that each
// counts; with highest the last ones have a number that nobody can outbid.
func (r *rogue) accuse(ctx context.Context, count, perSecond int, highest bool) (rogueAnswer, error) {
	var a rogueAnswer
	versions := []byte{1, 5, 2, 0, 0, 0}
	limit := rate.NewLimiter(rate.Limit(perSecond), perSecond/100+1)
	for i := range count {
		if err := limit.Wait(ctx); err != nil {
			return a, err
		}
		to, victim := r.targets[i%len(r.targets)].ID, r.targets[i/len(r.targets)%len(r.targets)].ID
		number := uint32(1000 + i)
		if highest && i >= count-100 {
			number = math.MaxUint32
		}
		messages := [][]byte{
			membertest.Dead(number, victim, r.id.ID),
			membertest.Suspect(number, victim, r.id.ID),
			membertest.Dead(number, victim, victim), // "it left"
			membertest.Suspect(number, victim, to),
			membertest.Alive(number, victim.String(), r.id.ID.InnerAddr().AsSlice(), noisenet.VirtualPort, versions),
			membertest.Alive(number, victim.String(), victim.InnerAddr().AsSlice(), noisenet.VirtualPort, []byte{5, 5, 5, 0, 0, 0}),
			membertest.Alive(number, ids.NodeID{byte(i), 1}.String(), ids.NodeID{byte(i), 1}.InnerAddr().AsSlice(), noisenet.VirtualPort, versions),
		}
		if err := r.packet(to, messages[rand.N(len(messages))]); err != nil {
			return a, err
		}
		a.Tried++
	}
	return a, nil
}

// Numbers of msgpack, of every width and sign.
var numbers = [][]byte{
	{0x7f}, {0xff}, {0xcc, 0xff}, {0xcd, 0xff, 0xff}, {0xce, 0xff, 0xff, 0xff, 0xff}, {0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff},
	{0xd0, 0x80}, {0xd1, 0x80, 0}, {0xd2, 0x80, 0, 0, 0}, {0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0}, {0xc0}, {0xcb, 0x7f, 0xf0, 0, 0, 0, 0, 0, 0},
}

// badStreams are gossip streams that a memberlist of some version cannot stand: the 16
// bytes that end versions 0.5.4 and 0.6.0, what unpacks to a gigabyte, counts that
// ask for more memory than there is, and what goes on without end.
func badStreams() map[string][]byte {
	out := map[string][]byte{
		"a bomb":                      bomb(bombSize),
		"a bomb, cut off":             bomb(bombSize)[:1000],
		"encrypted":                   append([]byte{10}, 0xff, 0xff, 0xff, 0xff),
		"a label":                     append([]byte{244, 255}, bytes.Repeat([]byte{'x'}, 255)...),
		"a compound":                  append([]byte{7, 255}, bytes.Repeat([]byte{0xff}, 510)...),
		"a ping with a name of 4 GiB": []byte("\x00\x82\xa4Node\xdb\xff\xff\xff\xff...."),
		"a ping with bytes of 4 GiB":  []byte("\x00\x81\xaaSourceAddr\xc6\xff\xff\xff\xff...."),
		"a ping of 2^32 fields":       []byte("\x00\xdf\xff\xff\xff\xff"),
		"arrays in arrays":            append([]byte("\x00\x81\xa1x"), bytes.Repeat([]byte{0x91}, 1<<20)...),
		"maps in maps":                append([]byte("\x00\x81\xa1x"), bytes.Repeat([]byte{0x81}, 1<<20)...),
		"nodes that are none": append([]byte("\x06\x83\xa4Join\xc3\xa5Nodes\xcd\x40\x00\xacUserStateLen\xce\x00\x40\x00\x00"),
			bytes.Repeat([]byte{0x80}, 1<<14)...),
		"a node with versions cut off": []byte("\x06\x83\xa4Join\xc3\xa5Nodes\x01\xacUserStateLen\x00\x82\xa4Name\xa1x\xa3Vsn\xc4\x01\x01"),
	}
	for i, n := range numbers {
		out[fmt.Sprintf("user message of length %x", n)] = append([]byte("\x08\x81\xaaUserMsgLen"), n...)
		out[fmt.Sprintf("%x nodes", n)] = append(append([]byte("\x06\x83\xa4Join\xc2\xa5Nodes"), n...), "\xacUserStateLen\x00"...)
		out[fmt.Sprintf("user state of length %x", n)] = append([]byte("\x06\x83\xa4Join\xc2\xa5Nodes\x00\xacUserStateLen"), n...)
		out[fmt.Sprintf("type %d and nothing", 64+i)] = []byte{64 + byte(i)}
	}
	return out
}

// breakStreams opens gossip streams to all others, some at a time, and sends on each
// something that a memberlist cannot stand. Before and after, a ping is answered.
func (r *rogue) breakStreams(ctx context.Context) (rogueAnswer, error) {
	const atOnce = 6
	var a rogueAnswer
	if err := r.pingStreams(); err != nil {
		return a, err
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(atOnce * len(r.targets))
	for name, b := range badStreams() {
		for _, t := range r.targets {
			a.Tried++
			g.Go(func() error {
				if err := r.badStream(ctx, t.ID, b); err != nil {
					return fmt.Errorf("%s to %s: %w", name, t.ID, err)
				}
				return ctx.Err()
			})
		}
	}
	if err := g.Wait(); err != nil {
		return a, err
	}
	return a, r.pingStreams()
}

func (r *rogue) pingStreams() error {
	for _, t := range r.targets {
		if err := r.pingStream(t.ID); err != nil {
			return err
		}
	}
	return nil
}

// badStream sends b on a stream and looks how the other closes it. A handshake that
// takes too long on a slow machine is tried again.
func (r *rogue) badStream(ctx context.Context, to ids.NodeID, b []byte) error {
	c, err := r.DialTimeout(virtual(to), 10*time.Second)
	for err != nil {
		if ctx.Err() != nil {
			return err
		}
		c, err = r.DialTimeout(virtual(to), 10*time.Second)
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(time.Second))
	_, _ = c.Write(b)    // the other may have closed already: that is what it should do
	_, _ = io.ReadAll(c) // until it closes, or would wait for more
	return nil
}

// pingStream is the control: the other's memberlist lives and answers.
func (r *rogue) pingStream(to ids.NodeID) error {
	c, err := r.DialTimeout(virtual(to), 10*time.Second)
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	ping := membertest.Gossip(membertest.Ping, membertest.Field{Name: "SeqNo", Value: uint32(1)}, membertest.Field{Name: "Node", Value: to.String()})
	if _, err := c.Write(ping); err != nil {
		return err
	}
	var answer [1]byte
	if _, err := io.ReadFull(c, answer[:]); err != nil || answer[0] != 2 {
		return fmt.Errorf("ping of %s is answered by message type %d: %w", to, answer[0], err)
	}
	return nil
}

// breakPackets sends packets of gossip that cannot be: every type, cut off and
// nested, and such as are right in their form and not in what they say.
func (r *rogue) breakPackets(ctx context.Context) (rogueAnswer, error) {
	var a rogueAnswer
	limit := rate.NewLimiter(2000, 20)
	var nested []byte
	for range 200 {
		nested = append([]byte{7, 1, byte((len(nested) + 1) >> 8), byte(len(nested) + 1)}, append(nested, 0)...)
	}
	packets := [][]byte{nested, bomb(bombSize)[:1100], {7, 255}, {12, 0, 0, 0, 0, 7, 255}, {}}
	for kind := range 256 {
		packets = append(packets, []byte{byte(kind)}, []byte{byte(kind), 0xdf, 0xff, 0xff, 0xff, 0xff},
			append([]byte{byte(kind), 0x81, 0xa1, 'x'}, bytes.Repeat([]byte{0x91}, 1100)...))
	}
	for _, n := range []uint32{0, math.MaxUint32} {
		packets = append(packets, membertest.Dead(n, ids.NodeID{}, ids.NodeID{}), membertest.Suspect(n, r.id.ID, ids.NodeID{}),
			membertest.Alive(n, "", nil, 0, nil), membertest.Alive(n, r.id.ID.String(), []byte{1}, 65535, []byte{1, 2, 3}))
	}
	for _, b := range packets {
		for _, t := range r.targets {
			if err := limit.Wait(ctx); err != nil {
				return a, err
			}
			if err := r.packet(t.ID, b); err != nil {
				return a, err
			}
			a.Tried++
		}
	}
	return a, nil
}

// breakRequests sends control requests that no member sends, also such as are as
// large as one may be, and eight of those at once.
func (r *rogue) breakRequests(ctx context.Context) (rogueAnswer, error) {
	var a rogueAnswer
	try := func(t rogueTarget, name string, req []byte) error {
		a.Tried++
		ok, err := r.taken(ctx, t.ID, req)
		if ok {
			a.Accepted = append(a.Accepted, fmt.Sprintf("%s by %s", name, t.ID))
		}
		return err
	}
	for _, t := range r.targets {
		for kind := range 32 {
			for _, rest := range [][]byte{nil, {1}, {2, 0}, append(make([]byte, 40), 0xff, 0xff, 0xff, 0xff), bytes.Repeat([]byte{0xff}, 100)} {
				if err := try(t, fmt.Sprintf("request %d % x", kind, rest), append([]byte{byte(kind)}, rest...)); err != nil {
					return a, err
				}
			}
		}
		large := make([]byte, noisenet.MaxMessage)
		for i := 0; i < len(large); i += 8 {
			binary.BigEndian.PutUint64(large[i:], rand.Uint64())
		}
		var wg sync.WaitGroup
		for _, kind := range []byte{askSync, askPush, askGet, askItems, askRotate, askGive, 6, 9} {
			req := append([]byte{kind, 1}, large[2:]...)
			wg.Go(func() { _, _ = r.ask(ctx, t.ID, req) }) // it must only bear it; the next request shows
		}
		wg.Wait()
		if err := try(t, "an empty push", append(message(askPush), 0)); err != nil {
			return a, err
		}
	}
	return a, nil
}

// bombSize is what the bomb unpacks to.
const bombSize = 300 << 20

// bomb is a compressed message that unpacks to so many bytes or somewhat more, 1,300
// times its own size (type 9: algorithm, bytes; LZW, lowest bit first, 8 bits). It is
// written bit by bit: to have it packed takes seconds.
func bomb(size int) []byte {
	var packed bytes.Buffer
	var bits uint64
	have := 0
	put := func(code, width int) {
		bits |= uint64(code) << have
		for have += width; have >= 8; have -= 8 {
			packed.WriteByte(byte(bits))
			bits >>= 8
		}
	}
	const restart, end, first, full = 256, 257, 258, 4096
	for size > 0 {
		put(restart, 9)
		put(0, 9)
		size--
		// Each code is one zero longer than the one before it.
		for code := first; code < full-1; code++ {
			put(code, widthOf(code))
			size -= code - first + 2
		}
		put(restart, 12)
	}
	put(end, 9)
	put(0, 7) // fill the last byte
	b := append([]byte{membertest.Compress}, "\x82\xa4Algo\x00\xa3Buf\xdb"...)
	b = binary.BigEndian.AppendUint32(b, uint32(packed.Len()))
	return append(b, packed.Bytes()...)
}

// widthOf is how many bits a code takes when it is written as the next one that
// there will be.
func widthOf(code int) int {
	width := 9
	for code >= 1<<width {
		width++
	}
	return width
}
