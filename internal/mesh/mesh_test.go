package mesh_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/mesh"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares got with the file, or writes it.
func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), got); d != "" {
		t.Errorf("%s (-want +got):\n%s", file, d)
	}
}

// excerpt prints faults in the way that the command line does.
func excerpt(err error) string {
	var b strings.Builder
	for _, f := range fault.All(err) {
		fmt.Fprintf(&b, "error[%s]: %s\n", f.Code, f.Message)
		if f.Line > 0 {
			fmt.Fprintf(&b, "  --> %s:%d:%d\n", f.File, f.Line, f.Column)
			for i, text := range f.Source {
				fmt.Fprintf(&b, "%3d | %s\n", f.Line-len(f.Source)+1+i, text)
			}
			text := f.Source[len(f.Source)-1]
			pad := strings.Map(func(r rune) rune {
				if r == '\t' {
					return r
				}
				return ' '
			}, text[:f.Column-1])
			marked := text[min(f.Column-1, len(text)):min(f.EndColumn-1, len(text))]
			fmt.Fprintf(&b, "    | %s%s %s\n", pad, strings.Repeat("^", max(1, len([]rune(marked)))), f.Label)
		}
		if f.Hint != "" {
			fmt.Fprintf(&b, "    = help: %s\n", f.Hint)
		}
		if f.Replacement != "" {
			fmt.Fprintf(&b, "    = replacement: %s\n", f.Replacement)
		}
		b.WriteByte('\n')
	}
	return b.String()
}

func files(t testing.TB, pattern string) []string {
	t.Helper()
	list, err := filepath.Glob(pattern)
	if err != nil || len(list) == 0 {
		t.Fatalf("no files %s: %v", pattern, err)
	}
	return list
}

func read(t testing.TB, file string) []byte {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestParseReportsEveryError(t *testing.T) {
	for _, file := range files(t, "testdata/bad/*.yaml") {
		name := filepath.Base(file)
		t.Run(name, func(t *testing.T) {
			f, err := mesh.Parse(name, read(t, file))
			if err == nil || f != nil {
				t.Fatalf("accepted")
			}
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden", excerpt(err))
		})
	}
}
