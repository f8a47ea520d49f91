package ipam

import (
	"fmt"
	"testing"
)

// mutants are the rules, each broken in one place. The model must find a block with
// two owners in every one of them: else it would not notice if the code broke it. The
// number is a run that does, to begin with.
var mutants = map[string]uint64{
	"promised twice":                  1,
	"answered before it is written":   0,
	"other voters do not matter":      57,
	"half is enough":                  0,
	"nobody is met":                   50,
	"voters are forgotten":            8,
	"alone at first":                  32,
	"claimed again at once":           301,
	"published before it is released": 10,
	"a lost record ends a promise":    31,
}

func TestMutantsAreFound(t *testing.T) {
	for broken, first := range mutants {
		t.Run(broken, func(t *testing.T) {
			t.Parallel()
			for i := range uint64(20) {
				seed := first + i
				m := newModel(t, seed, 2+int(seed)%4, broken)
				m.most, m.every = 3+int(seed)%3, 300*(1+int(seed)%3)
				m.run(20_000)
				if m.double != "" {
					t.Logf("seed %d: %s", seed, m.double)
					return
				}
			}
			t.Error("20 runs did not notice")
		})
	}
}

// TestManyRuns is TestOneOwner over more and shorter histories.
func TestManyRuns(t *testing.T) {
	runs := uint64(25)
	if testing.Short() || slowness > 1 {
		runs = 3
	}
	for part := range uint64(4) {
		t.Run(fmt.Sprint("part ", part), func(t *testing.T) {
			t.Parallel()
			for i := range runs {
				seed := 1000 + runs*part + i
				m := newModel(t, seed, 1+int(seed)%6, "")
				m.most, m.every = 2+int(seed)%5, 100*(1+int(seed)%5)
				m.run(8_000)
				if m.double != "" {
					t.Fatalf("seed %d: %s", seed, m.double)
				}
			}
		})
	}
}
