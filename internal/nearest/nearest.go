package nearest

import "strings"

// Of returns the choice closest to got by edit distance, or false if none is
// close enough to have been meant: a third of its length, at least one edit.
// Letter case, dashes, underscores, dots and spaces do not count.
func Of(got string, choices []string) (string, bool) {
	best, bestDist := "", -1
	for _, c := range choices {
		if d := distance(fold(got), fold(c)); bestDist < 0 || d < bestDist {
			best, bestDist = c, d
		}
	}
	if bestDist < 0 || bestDist > max(1, (len(fold(best))+1)/3) {
		return "", false
	}
	return best, true
}

func fold(s string) string {
	return strings.NewReplacer("-", "", "_", "", ".", "", " ", "").Replace(strings.ToLower(s))
}

// distance is the Levenshtein distance with adjacent transposition counted as
// one edit, over bytes. Long inputs are cut: nobody misspells 64 letters.
func distance(a, b string) int {
	a, b = a[:min(len(a), 64)], b[:min(len(b), 64)]
	prev2, prev, cur := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		cur[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			cur[j] = min(prev[j]+1, cur[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				cur[j] = min(cur[j], prev2[j-2]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}
