package mesh_test

import (
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/parleymesh/parley/internal/mesh"
)

func TestNearest(t *testing.T) {
	t.Parallel()
	known := []string{"runs_as", "inbound", "calls", "allow", "Listen", "to"}
	for name, want := range map[string]string{
		"run_as": "runs_as", "runsas": "runs_as", "inbuond": "inbound", "call": "calls", "LISTEN": "Listen",
		"too": "to", "x": "", "limit": "", "": "", "outbound": "", "imbond": "inbound", "alow": "allow",
	} {
		if got := mesh.Nearest(name, known); got != want {
			t.Errorf("nearest(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestDistance(t *testing.T) {
	t.Parallel()
	tests := []struct {
		a, b  string
		limit int
		want  int
	}{
		{"", "", 9, 0},
		{"abc", "abc", 9, 0},
		{"abc", "acb", 9, 1},
		{"abc", "ab", 9, 1},
		{"abc", "xyz", 9, 3},
		{"kitten", "sitting", 9, 3},
		{"kitten", "sitting", 2, 2},
		{"a", "abcdef", 3, 3},
		{"ab", "ba", 9, 1},
	}
	for _, tt := range tests {
		if got := mesh.Distance(tt.a, tt.b, tt.limit); got != tt.want {
			t.Errorf("distance(%q, %q, %d) = %d, want %d", tt.a, tt.b, tt.limit, got, tt.want)
		}
	}
}

// TestScalar reads back what it writes, in the tightest place.
func TestScalar(t *testing.T) {
	t.Parallel()
	for _, s := range []string{"a", "/a/**", "*.x", "-", "true", "No", "1", "1e3", "~", "a b", "a,b", "a]", "a: b", "a#b", `a"\`, "é", "/%2A", ":9443", "0x1", ".5", "é\u0001"} {
		var got struct{ X []any }
		if err := yaml.Unmarshal([]byte("x: ["+mesh.Scalar(s)+"]"), &got); err != nil || len(got.X) != 1 || got.X[0] != s {
			t.Errorf("%q as %s reads %v, %v", s, mesh.Scalar(s), got.X, err)
		}
	}
}
