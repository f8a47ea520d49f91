package cli

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestWrap(t *testing.T) {
	tests := []struct {
		in   string
		want []string
	}{
		{"", nil},
		{"one", []string{"one"}},
		{"one two three", []string{"one two", "three"}},
		{"a secure-overlay-command b", []string{"a", "secure-overlay-command", "b"}},
		{"ä ö ü é", []string{"ä ö ü é"}},
	}
	for _, tt := range tests {
		if d := cmp.Diff(tt.want, Wrap(tt.in, 8)); d != "" {
			t.Errorf("Wrap(%q): %s", tt.in, d)
		}
	}
}
