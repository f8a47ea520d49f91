package keystore

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"strconv"
	"strings"

	"github.com/secure-overlay/secure-overlay/internal/ids"
)

// Promises is what a node has promised about address blocks (agent/ipam), and the
// members that it counts as voters.
type Promises struct {
	List   []Promise
	Voters []Voter
	Joined bool // the node has known another member
	Met    bool // it has had the answer that these voters need
}

// Promise is one: a block of a network is a node's.
type Promise struct {
	Network string // no spaces
	Block   netip.Prefix
	To      ids.NodeID
	Seq     uint64
	Settled bool
}

// Voter is a member that counts.
type Voter struct {
	ID     ids.NodeID
	Serial uint64
	Ends   int64 // of its certificate, seconds since 1970
}

// promisesBody is the body of promises.json: a line for each promise and voter, so
// that the largest list stays below maxFile.
type promisesBody struct {
	Promises []string `json:"promises"`
	Voters   []string `json:"voters"`
	Joined   bool     `json:"joined"`
	Met      bool     `json:"met"`
}

const settledWord = "settled"

func (p Promise) text() string {
	last := strconv.FormatUint(p.Seq, 10)
	if p.Settled {
		last = settledWord
	}
	return fmt.Sprintf("%s %s %s %s", p.Network, p.Block, p.To, last)
}

func parsePromise(s string) (p Promise, err error) {
	f := strings.Split(s, " ")
	if len(f) != 4 || f[0] == "" {
		return p, ErrCorrupt
	}
	p.Network = f[0]
	p.Block, err = netip.ParsePrefix(f[1])
	if err == nil {
		p.To, err = ids.ParseNodeID(f[2])
	}
	if p.Settled = f[3] == settledWord; !p.Settled && err == nil {
		p.Seq, err = strconv.ParseUint(f[3], 10, 64)
	}
	if err != nil || p.text() != s {
		return Promise{}, ErrCorrupt
	}
	return p, nil
}

func (v Voter) text() string { return fmt.Sprintf("%s %d %d", v.ID, v.Serial, v.Ends) }

func parseVoter(s string) (v Voter, err error) {
	f := strings.Split(s, " ")
	if len(f) != 3 {
		return v, ErrCorrupt
	}
	v.ID, err = ids.ParseNodeID(f[0])
	if err == nil {
		v.Serial, err = strconv.ParseUint(f[1], 10, 64)
	}
	if err == nil {
		v.Ends, err = strconv.ParseInt(f[2], 10, 64)
	}
	if err != nil || v.text() != s {
		return Voter{}, ErrCorrupt
	}
	return v, nil
}

// Promises returns what SavePromises has kept; nothing if it was never called. There
// is no copy to go back to, since a copy would have forgotten the last promise, and
// what is forgotten is promised again. A damaged file is ErrCorrupt, and says what an
// operator can do.
func (s *Store) Promises() (Promises, error) {
	body, err := loadOne[promisesBody](s.dir, promisesName)
	if errors.Is(err, fs.ErrNotExist) {
		return Promises{}, nil
	}
	out := Promises{Joined: body.Joined, Met: body.Met}
	for _, line := range body.Promises {
		p, bad := parsePromise(line)
		err = errors.Join(err, bad)
		out.List = append(out.List, p)
	}
	for _, line := range body.Voters {
		v, bad := parseVoter(line)
		err = errors.Join(err, bad)
		out.Voters = append(out.Voters, v)
	}
	if err != nil {
		return Promises{}, fmt.Errorf("%s holds what this node has promised about address blocks and cannot be read; "+
			"leave the cluster and join it again, or, while all other nodes run and nothing is attached anywhere, remove the file: %w",
			s.dir.file(promisesName), err)
	}
	return out, nil
}

// SavePromises replaces what is kept. When it returns nil all of it survives a power
// cut; after an error the old or the new content does.
func (s *Store) SavePromises(p Promises) error {
	body := promisesBody{Joined: p.Joined, Met: p.Met, Promises: make([]string, len(p.List)), Voters: make([]string, len(p.Voters))}
	for i, x := range p.List {
		body.Promises[i] = x.text()
	}
	for i, v := range p.Voters {
		body.Voters[i] = v.text()
	}
	b, err := seal(body)
	if err != nil {
		return fmt.Errorf("save promises: %w", err)
	}
	// Not under mu: nothing else writes this file, and its writer is alone.
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return ErrClosed
	}
	if err := s.dir.replace(promisesName, b); err != nil {
		return fmt.Errorf("save promises: %w", err)
	}
	return nil
}
