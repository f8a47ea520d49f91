package rotate

import "fmt"

// check returns an error if an invariant does not hold in w.
func (u *universe) check(w *world) error {
	for a := range u.limits.nodes {
		n := u.node(w.node[a]).simNode
		live := 0
		for _, d := range n.dev {
			if d.inst != 0 {
				live++
			}
		}
		if live > MaxEpochs {
			return fmt.Errorf("node %d has %d devices", a, live)
		}
		for b := range u.limits.nodes {
			if b != a {
				if err := received(n, u.node(w.node[b]).simNode); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// received: the epoch that n sends to o on is one that o receives on, unless
// o has lost that very key, or n its own half.
func received(n, o *simNode) error {
	e := n.route[o.idx]
	if e == 0 {
		return nil
	}
	mine, theirs := n.has[e][o.idx], o.has[e][n.idx]
	switch {
	case mine.key == 0 && n.hole[o.idx]:
	case mine.key == 0 || !mine.sends:
		return fmt.Errorf("node %d routes to %d through epoch %d, where it cannot send", n.idx, o.idx, e)
	case theirs.key != mine.key && !o.lost[e][n.idx].has(mine.key):
		return fmt.Errorf("node %d sends to %d on epoch %d under key %d, where the other has %d", n.idx, o.idx, e, mine.key, theirs.key)
	}
	return nil
}

// announced: a node says only of keys that are installed that it has them.
func (n *simNode) announced(m Outgoing) error {
	to := simIndex(m.To)
	for _, s := range m.Message.Epochs {
		if n.has[s.Epoch][to].key != simKey(s.Key) {
			return fmt.Errorf("node %d announces key %d of epoch %d to %d, and has %d", n.idx, s.Key, s.Epoch, to, n.has[s.Epoch][to].key)
		}
	}
	return nil
}

// replaced: no key is replaced while both have it and one sends under it.
func (u *universe) replaced(w *world, a int, before *simNode) error {
	n := u.node(w.node[a]).simNode
	for b := range u.limits.nodes {
		o := u.node(w.node[b]).simNode
		for e := range before.has {
			was, is := before.has[e][b].key, n.has[e][b].key
			if b == a || was == 0 || is == 0 || was == is || o.has[e][a].key != was {
				continue
			}
			if int(before.route[b]) == e || int(o.route[a]) == e {
				return fmt.Errorf("node %d replaces key %d of %d on epoch %d, which is in use", a, was, b, e)
			}
		}
	}
	return nil
}

// moved: a route moves only to what both nodes have proved, and not to where
// large packets do not pass if they passed before.
func (u *universe) moved(w *world, a int, before *simNode) error {
	n := u.node(w.node[a]).simNode
	for b := range u.limits.nodes {
		e, old := n.route[b], before.route[b]
		if b == a || e == 0 || e == old {
			continue
		}
		o := u.node(w.node[b]).simNode
		k := n.has[e][b].key
		if n.proved[e][b] != k || o.proved[e][a] != k {
			return fmt.Errorf("node %d moves its route to %d to epoch %d, key %d, which the two have not both proved", a, b, e, k)
		}
		if u.hole>>e&1 != 0 && old != 0 && u.hole>>old&1 == 0 && before.reaches(o, int(old)) {
			return fmt.Errorf("node %d moves its route to %d into a hole", a, b)
		}
	}
	return nil
}
