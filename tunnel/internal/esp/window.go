package esp

// Window is how many packets back one may still arrive.
const Window = 1024

const (
	wordBits = 64
	// words is a power of two with more bits than Window: a word of the ring is cleared as a
	// whole when the window gets to it, while the oldest bits of the window are in another
	// (RFC 6479).
	words = 2 * Window / wordBits
)

// window knows which sequence numbers have been taken. The zero value has taken none.
type window struct {
	top  uint64 // the highest that was taken
	bits [words]uint64
}

// guess returns the number whose low half is low and that is nearest to the window: RFC 4303,
// appendix A2.1. Before the first is that of the last subspace, which fresh refuses.
func (w *window) guess(low uint32) uint64 {
	high, top := w.top>>32, uint32(w.top)
	bottom := top - (Window - 1) // of the window; wraps
	switch {
	case top >= Window-1: // all of the window is in one subspace
		if low < bottom {
			high++
		}
	case low >= bottom: // its lower part is in the subspace before
		high--
	}
	return high<<32 | uint64(low)
}

// fresh reports whether a number was not taken and may still come. Zero never does.
func (w *window) fresh(seq uint64) bool {
	switch {
	case seq == 0, seq>>32 > w.top>>32+1: // the latter is what guess says before the first
		return false
	case seq > w.top:
		return true
	case w.top-seq >= Window:
		return false
	}
	return w.bits[seq/wordBits%words]&(1<<(seq%wordBits)) == 0
}

// take marks a number that is fresh.
func (w *window) take(seq uint64) {
	if seq > w.top {
		for i := range min(seq/wordBits-w.top/wordBits, words) {
			w.bits[(w.top/wordBits+1+i)%words] = 0
		}
		w.top = seq
	}
	w.bits[seq/wordBits%words] |= 1 << (seq % wordBits)
}
