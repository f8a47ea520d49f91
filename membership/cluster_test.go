package membership

import (
	"fmt"
	"testing"
)

func TestConverge(t *testing.T) {
	for _, n := range []int{3, 5, 20} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			l := newLab(t)
			converge(t, l.cluster(n), n)
		})
	}
}
