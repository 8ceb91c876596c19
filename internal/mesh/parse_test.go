package mesh_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mesh"
	"github.com/parleymesh/parley/internal/policy"
)

func TestParseDefaults(t *testing.T) {
	t.Parallel()
	f := parse(t, "trust_domain: shop.example\nservices: {a: {runs_as: {user: a}, inbound: {listen: ':1', app: 'unix:/a'}}}\n")
	if f.LeafTTL != time.Hour || f.OutboundPorts != 15001 || f.Services["a"].Inbound.Protocol != "http" || f.Name() != "parley.yaml" {
		t.Errorf("%+v", f)
	}
	if got := f.Line("services.a.inbound"); got != 2 {
		t.Errorf("line %d", got)
	}
	if got := f.Line("leaf_ttl"); got != 0 {
		t.Errorf("a key that is not written stands on line %d", got)
	}
}

func TestParseLimits(t *testing.T) {
	t.Parallel()
	deep := "trust_domain: a\nx: " + strings.Repeat("[", 40) + strings.Repeat("]", 40)
	services := "trust_domain: a\nservices:\n"
	for i := range 10_001 {
		services += fmt.Sprintf("  s%d: {}\n", i)
	}
	tests := map[string]struct {
		text string
		want fault.Code
	}{
		"size":    {"trust_domain: a" + strings.Repeat("\n", mesh.MaxSize), fault.MeshTooLarge},
		"depth":   {deep, fault.MeshTooLarge},
		"deepest": {strings.Repeat("[", 100_000), fault.MeshSyntax},
		"entries": {services, fault.MeshTooLarge},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, err := mesh.Parse("parley.yaml", []byte(tt.text))
			faults := fault.All(err)
			if len(faults) != 1 || faults[0].Code != tt.want {
				t.Errorf("%.300v", err)
			}
			if name == "entries" && (faults[0].Line != 10_003 || faults[0].Column != 3 || faults[0].Hint == "") {
				t.Errorf("%+v", faults[0])
			}
		})
	}
}

func TestParseBoundsFaults(t *testing.T) {
	t.Parallel()
	text := "trust_domain: a\n"
	for i := range 5 * mesh.MaxFaults {
		text += fmt.Sprintf("key%d: 1\n", i)
	}
	_, err := mesh.Parse("parley.yaml", []byte(text))
	faults := fault.All(err)
	if len(faults) != mesh.MaxFaults+1 || faults[mesh.MaxFaults].Code != fault.MeshTooLarge {
		t.Errorf("%d faults, the last %v", len(faults), faults[len(faults)-1])
	}
}

// TestParseTakesByteOrderMark: editors write it, and positions do not count it.
func TestParseTakesByteOrderMark(t *testing.T) {
	t.Parallel()
	if _, err := mesh.Parse("x", []byte("\ufefftrust_domain: a\r\n")); err != nil {
		t.Error(err)
	}
	_, err := mesh.Parse("x", []byte("\ufefftrust: a\n"))
	for _, f := range fault.All(err) {
		if f.Line == 1 && f.Column != 1 {
			t.Errorf("%+v", f)
		}
	}
}

// TestFaultsArePrintable: a mesh file may come from somebody else, and its
// errors go to a terminal.
func TestFaultsArePrintable(t *testing.T) {
	t.Parallel()
	evil := `"\e[2J\u202e` + strings.Repeat("x", 900) + `"`
	_, err := mesh.Parse("x", []byte("trust_domain: "+evil+"\nservices: {"+evil+": {runs_as: {"+evil+": 1, exe: "+evil+"}, calls: ["+evil+"]}}\n"))
	faults := fault.All(err)
	if len(faults) < 5 {
		t.Fatal(err)
	}
	for _, f := range faults {
		text := f.Message + f.Label + f.Hint + f.Replacement
		if len(text) > 2500 || strings.ContainsFunc(text, func(c rune) bool { return !unicode.IsPrint(c) }) {
			t.Errorf("%.200q", text)
		}
	}
}

// TestReplacementsHelp applies every replacement and expects its fault gone.
func TestReplacementsHelp(t *testing.T) {
	t.Parallel()
	n := 0
	for _, file := range files(t, "testdata/bad/*.yaml") {
		text := string(read(t, file))
		_, err := mesh.Parse("x", []byte(text))
		for _, f := range fault.All(err) {
			if f.Replacement == "" {
				continue
			}
			n++
			lines := strings.Split(text, "\n")
			line := &lines[f.Line-1]
			*line = (*line)[:f.Column-1] + f.Replacement + (*line)[f.EndColumn-1:]
			_, err := mesh.Parse("x", []byte(strings.Join(lines, "\n")))
			for _, g := range fault.All(err) {
				if g.Line == f.Line && g.Column == f.Column && g.Message == f.Message || g.Code == fault.MeshSyntax {
					t.Errorf("%s: %v: %q does not help: %v", file, f, f.Replacement, g)
				}
			}
		}
	}
	if n < 20 {
		t.Errorf("only %d replacements", n)
	}
}

// FuzzParse: no input panics; every fault stands inside the document; what Parse
// accepts compiles, always to the same snapshot, to rules that policy accepts;
// and everything else that takes a file takes it.
func FuzzParse(f *testing.F) {
	for _, pattern := range []string{"testdata/good/*.yaml", "testdata/bad/*.yaml", "testdata/diff/*.yaml", "testdata/findings/*.yaml"} {
		for _, file := range files(f, pattern) {
			f.Add(read(f, file))
		}
	}
	f.Add([]byte(shop))
	f.Fuzz(func(t *testing.T, data []byte) {
		file, err := mesh.Parse("f", data)
		if err != nil {
			checkFaults(t, data, err)
			return
		}
		first := compile(t, file)
		again, err := mesh.Parse("f", data)
		if err != nil {
			t.Fatal(err)
		}
		opts := cmp.Options{
			cmp.Comparer(func(a, b identity.ID) bool { return a == b }),
			cmp.Comparer(func(a, b identity.TrustDomain) bool { return a == b }),
			cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
		}
		if d := cmp.Diff(first, compile(t, again), opts); d != "" {
			t.Fatalf("compiled twice: %s", d)
		}
		policyOf(t, first)
		if changes := mesh.Diff(file, again); len(changes) != 0 {
			t.Fatalf("differs from itself: %v", changes)
		}
		mesh.Diff(nil, file)
		mesh.Findings(file, day)
		for _, target := range first.Services {
			for _, caller := range first.Members {
				mesh.Suggest(file, policy.Query{Target: target.Name, Caller: identity.Caller{Workload: caller}, Method: "GET", Path: "/fuzz"})
			}
		}
	})
}

func checkFaults(t *testing.T, data []byte, err error) {
	t.Helper()
	faults := fault.All(err)
	if len(faults) == 0 || len(faults) > mesh.MaxFaults+1 {
		t.Fatalf("%d faults: %v", len(faults), err)
	}
	lines := strings.Count(string(data), "\n") + 1
	for _, x := range faults {
		if x.Code == "" || x.Message == "" || x.File != "f" && x.Code != fault.MeshTooLarge {
			t.Errorf("incomplete: %+v", x)
		}
		if x.Line == 0 {
			continue
		}
		if x.Line > lines || x.Column < 1 || x.EndColumn <= x.Column {
			t.Errorf("of %d lines: %+v", lines, x)
		}
		if n := len(x.Source); n > 0 && x.EndColumn > len(x.Source[n-1])+2 {
			t.Errorf("beyond its line: %+v", x)
		}
	}
}
