package rotate

// nodeStore keeps millions of nodes as bytes, and those in use decoded.
type nodeStore struct {
	chunks     [][]byte
	at         []place
	young, old map[uint32]*nodeEntry
}

type place struct {
	chunk, off uint32
	n          uint32
}

const (
	storeChunk = 4 << 20
	storeYoung = 40_000 // nodes decoded at a time; twice as many at most
)

func (s *nodeStore) add(raw []byte) uint32 {
	last := len(s.chunks) - 1
	if last < 0 || len(s.chunks[last])+len(raw) > storeChunk {
		s.chunks = append(s.chunks, make([]byte, 0, storeChunk))
		last++
	}
	s.at = append(s.at, place{uint32(last), uint32(len(s.chunks[last])), uint32(len(raw))})
	s.chunks[last] = append(s.chunks[last], raw...)
	return uint32(len(s.at) - 1)
}

func (s *nodeStore) get(i uint32) *nodeEntry {
	if e, ok := s.young[i]; ok {
		return e
	}
	e, ok := s.old[i]
	if !ok {
		p := s.at[i]
		e = newNodeEntry(decode(s.chunks[p.chunk][p.off:][:p.n]))
	}
	if len(s.young) >= storeYoung || s.young == nil {
		s.young, s.old = make(map[uint32]*nodeEntry), s.young
	}
	s.young[i] = e
	return e
}

func newNodeEntry(n *simNode) *nodeEntry {
	entry := &nodeEntry{simNode: n}
	for _, p := range n.m.pairs {
		t := &p.talk
		entry.peers[simIndex(p.peer)] = peerEntry{
			boot: n.m.boot, said: t.said.Seq, stateSeq: t.stateSeq, freshSeq: t.freshSeq, backSeq: t.backSeq,
			ackBoot: t.said.AckBoot, ackSeq: t.said.AckSeq, heard: t.heard,
		}
	}
	return entry
}
