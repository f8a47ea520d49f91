package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/secure-overlay/secure-overlay/internal/ids"
	"github.com/secure-overlay/secure-overlay/keys"
	"github.com/secure-overlay/secure-overlay/keys/keystore"
	"github.com/secure-overlay/secure-overlay/membership/item"
	"github.com/secure-overlay/secure-overlay/membership/noisenet"
	"github.com/secure-overlay/secure-overlay/membership/record"
)

// rogueEnv makes a copy of the test binary a rogue: a member with a valid
// certificate that keeps no rules. It names the data folder of a node whose agent
// has ended.
const rogueEnv = "SECURE_OVERLAY_TEST_ROGUE"

// rogueTarget is a member that keeps the rules.
type rogueTarget struct {
	ID   ids.NodeID
	Addr netip.AddrPort
}

// rogueOrder says what the rogue does next; a line on its standard input.
type rogueOrder struct {
	Do        string
	Targets   []rogueTarget `json:",omitempty"` // of "meet"
	Count     int           `json:",omitempty"` // of "accuse": messages
	PerSecond int           `json:",omitempty"`
	Highest   bool          `json:",omitempty"` // the last ones cannot be outbid
}

// rogueAnswer says what became of it; a line on its standard output.
type rogueAnswer struct {
	Error    string                       `json:",omitempty"` // it could not be done
	Tried    int                          // how often something was tried
	Accepted []string                     // what was taken that must not be
	Held     map[ids.NodeID]rogueHoldings `json:",omitempty"` // of "look"
}

// rogueHoldings is what a node says that it holds: a line for each record by its
// owner, and for each cluster item.
type rogueHoldings struct {
	Records map[ids.NodeID]string
	Items   []string
}

// rogue uses the product's transport and writes everything above it by hand
// (PROTOCOL.md, sections 10 to 12).
type rogue struct {
	*noisenet.Transport
	id      keystore.Identity
	targets []rogueTarget
	entries map[ids.NodeID]record.Entry // as the others last gave them
	items   [][]byte
	// Keys that nobody trusts.
	root   keys.RootPrivate
	issuer keys.IssuerPrivate

	mu   sync.Mutex // guards lies
	lies rogueLies
}

// rogueLies are answers to what others ask the rogue.
type rogueLies struct {
	entries []record.Entry
	items   [][]byte
	told    int
}

// rogueMain carries out orders until its input ends.
func rogueMain(dir string, in io.Reader, out io.Writer) error {
	store, err := keystore.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	id, err := store.Identity()
	if err != nil {
		return err
	}
	r := &rogue{id: id, entries: map[ids.NodeID]record.Entry{}}
	if r.root, err = keys.NewRootPrivate(); err != nil {
		return err
	}
	if r.issuer, err = keys.NewIssuerPrivate(); err != nil {
		return err
	}
	r.Transport = noisenet.New(noisenet.Config{
		Node: id.ID, Trust: id.Trust, Noise: id.Noise, Credential: id.Credential, Access: id.Access,
		Bind: netip.MustParseAddrPort("[::]:7946"), Handler: r.answer,
	})
	if err := r.Open(); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { _ = r.Run(ctx) })
	dec, enc := json.NewDecoder(in), json.NewEncoder(out)
	for {
		var o rogueOrder
		if err := dec.Decode(&o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		a, err := r.do(ctx, o)
		if err != nil {
			a.Error = err.Error()
		}
		if err := enc.Encode(a); err != nil {
			return err
		}
	}
}

// do carries out one order.
func (r *rogue) do(ctx context.Context, o rogueOrder) (rogueAnswer, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	switch o.Do {
	case "meet":
		return rogueAnswer{}, r.meet(ctx, o.Targets)
	case "look":
		return r.look(ctx)
	case "honest":
		return rogueAnswer{}, r.publish(ctx, func(*record.Node) {})
	case "claim":
		return rogueAnswer{}, r.publish(ctx, r.claimAll)
	case "records":
		return r.forgeRecords(ctx)
	case "items":
		return r.forgeItems(ctx)
	case "epochs":
		return r.forgeEpochs(ctx)
	case "accuse":
		return r.accuse(ctx, o.Count, o.PerSecond, o.Highest)
	case "streams":
		return r.breakStreams(ctx)
	case "packets":
		return r.breakPackets(ctx)
	case "requests":
		return r.breakRequests(ctx)
	case "told":
		r.mu.Lock()
		defer r.mu.Unlock()
		return rogueAnswer{Tried: r.lies.told}, nil
	}
	return rogueAnswer{}, fmt.Errorf("unknown order %q", o.Do)
}

// meet shakes hands with the others, as a member may.
func (r *rogue) meet(ctx context.Context, targets []rogueTarget) error {
	for _, t := range targets {
		p, err := r.Contact(ctx, t.Addr)
		if err != nil {
			return err
		}
		if p.ID != t.ID {
			return fmt.Errorf("%s is at %s, not %s", p.ID, t.Addr, t.ID)
		}
	}
	r.targets = targets
	return nil
}

// ask sends one control request.
func (r *rogue) ask(ctx context.Context, to ids.NodeID, req []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	return r.Call(ctx, to, req)
}

// taken is ask for what must be refused: whether it was not. An error that is no
// refusal shows nothing.
func (r *rogue) taken(ctx context.Context, to ids.NodeID, req []byte) (bool, error) {
	_, err := r.ask(ctx, to, req)
	var refused *noisenet.RemoteError
	if errors.As(err, &refused) {
		return false, nil
	}
	return err == nil, err
}

// Kinds of control requests (PROTOCOL.md, section 12.2).
const (
	askSync   = 1
	askPush   = 2
	askGet    = 3
	askItems  = 5
	askRotate = 7
	askGive   = 8

	answered = 0x80
	noDigest = 32 // bytes of zero in place of a digest
)

// message begins a request or an answer that has a digest.
func message(kind byte) []byte { return append([]byte{kind, 1}, make([]byte, noDigest)...) }

func withEntries(b []byte, entries ...record.Entry) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(entries)))
	for _, e := range entries {
		b = record.AppendEntry(b, e)
	}
	return b
}

func withItems(b []byte, items ...[]byte) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(len(items)))
	for _, raw := range items {
		b = append(binary.BigEndian.AppendUint16(b, uint16(len(raw))), raw...)
	}
	return b
}

// answer is what others hear who ask the rogue.
func (r *rogue) answer(_ context.Context, _ noisenet.Peer, req []byte) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(req) == 0 || len(r.lies.entries) == 0 && len(r.lies.items) == 0 {
		return nil, errors.New("nothing to say yet")
	}
	b := message(req[0] | answered)
	switch req[0] {
	case askSync:
		b = withEntries(append(b, 0, 0, 0, 0, 0), r.lies.entries...) // no more, nothing wanted
	case askGet:
		b = withEntries(b, r.lies.entries...)
	case askItems:
		b = withItems(append(b, 0, 0), r.lies.items...)
	default:
		return nil, errors.New("no")
	}
	r.lies.told++
	return b, nil
}

// look asks all others for everything that they hold, and keeps it as material.
func (r *rogue) look(ctx context.Context) (rogueAnswer, error) {
	a := rogueAnswer{Held: map[ids.NodeID]rogueHoldings{}}
	for _, t := range r.targets {
		h := rogueHoldings{Records: map[ids.NodeID]string{}}
		req := append([]byte{askSync, 1}, make([]byte, 16+noDigest+4)...)
		b, err := r.ask(ctx, t.ID, req)
		if err != nil {
			return a, err
		}
		if err := r.readEntries(b, h.Records); err != nil {
			return a, fmt.Errorf("records of %s: %w", t.ID, err)
		}
		if b, err = r.ask(ctx, t.ID, append(message(askItems), 0, 0)); err != nil {
			return a, err
		}
		if h.Items, err = r.readItems(b); err != nil {
			return a, fmt.Errorf("items of %s: %w", t.ID, err)
		}
		a.Held[t.ID] = h
	}
	return a, nil
}

func (r *rogue) readEntries(b []byte, into map[ids.NodeID]string) error {
	const head = 2 + noDigest + 1
	if len(b) < head+8 || b[head-1] != 0 || binary.BigEndian.Uint32(b[head:]) != 0 {
		return errors.New("the answer is not the whole set")
	}
	n, b := binary.BigEndian.Uint32(b[head+4:]), b[head+8:]
	for range n {
		e, rest, err := record.CutEntry(b)
		if err != nil {
			return err
		}
		node, err := record.Parse(e.Record)
		if err != nil {
			return err
		}
		into[node.ID] = fmt.Sprintf("record %d %x of certificate %x", node.Seq, sha256.Sum256(e.Record), sha256.Sum256(e.Credential.Cert))
		r.entries[node.ID], b = e, rest
	}
	return nil
}

func (r *rogue) readItems(b []byte) ([]string, error) {
	const head = 2 + noDigest + 2
	if len(b) < head+2 || binary.BigEndian.Uint16(b[head-2:]) != 0 {
		return nil, errors.New("the answer wants something")
	}
	n, b := binary.BigEndian.Uint16(b[head:]), b[head+2:]
	var lines []string
	r.items = nil
	for range n {
		if len(b) < 2 || len(b) < 2+int(binary.BigEndian.Uint16(b)) {
			return nil, errors.New("the answer is cut off")
		}
		size := int(binary.BigEndian.Uint16(b))
		raw := b[2 : 2+size]
		it, err := item.Parse(raw)
		if err != nil {
			return nil, err
		}
		lines = append(lines, fmt.Sprintf("%s, version %d, %x", it.Slot, it.Version, it.Hash))
		r.items, b = append(r.items, raw), b[2+size:]
	}
	return lines, nil
}

// publish hands a record of its own to one of the others, as a member may.
func (r *rogue) publish(ctx context.Context, change func(*record.Node)) error {
	n, err := record.Parse(r.entries[r.id.ID].Record)
	if err != nil {
		return err
	}
	n.Seq++
	change(&n)
	raw, err := record.Sign(n, r.id.Node)
	if err != nil {
		return err
	}
	e := record.Entry{Credential: r.id.Credential, Record: raw}
	if _, err := r.ask(ctx, r.targets[0].ID, withEntries(message(askPush), e)); err != nil {
		return err
	}
	r.entries[r.id.ID] = e
	return nil
}

// runRogue is the whole program of a rogue.
func runRogue(dir string) int {
	if err := rogueMain(dir, os.Stdin, os.Stdout); err != nil {
		_, _ = fmt.Fprintln(os.Stderr, "rogue:", err)
		return 1
	}
	return 0
}
