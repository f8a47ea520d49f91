package noisenet

const (
	windowBits  = 2048
	windowWords = windowBits / 64
	// windowSize is smaller than the ring by one word, because the word that
	// the highest counter falls into is shared by both ends (RFC 6479).
	windowSize = windowBits - 64
)

// replayWindow remembers which counters of a datagram session were accepted
// (RFC 6479, 2,048 bits). The zero value has accepted nothing.
//
// check never changes state; accept is called only after authentication, so a
// forged counter cannot move the window.
type replayWindow struct {
	top  uint64 // highest accepted counter + 1; 0: none yet
	ring [windowWords]uint64
}

// check reports whether counter n is new and not older than the window.
func (w *replayWindow) check(n uint64) bool {
	if n >= w.top {
		return n != ^uint64(0)
	}
	if w.top-n > windowSize {
		return false
	}
	return w.ring[(n/64)%windowWords]&(1<<(n%64)) == 0
}

// accept marks n and reports whether it is above every earlier counter. It
// must follow a true check of the same n.
func (w *replayWindow) accept(n uint64) (highest bool) {
	if n >= w.top {
		w.advance(n)
		highest = true
	}
	w.ring[(n/64)%windowWords] |= 1 << (n % 64)
	return highest
}

// advance clears the words between the old top and n, at most the whole ring.
func (w *replayWindow) advance(n uint64) {
	first := uint64(0)
	if w.top > 0 {
		first = (w.top-1)/64 + 1
	}
	last := n / 64
	if last >= first && last-first >= windowWords {
		first = last - windowWords + 1
	}
	for i := first; i <= last; i++ {
		w.ring[i%windowWords] = 0
	}
	w.top = n + 1
}
