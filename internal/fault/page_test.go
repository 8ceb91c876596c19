package fault_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/fault"
)

// where names the files that make codes and reasons, and which of their
// constants are some.
var where = map[string]func(name, value string) bool{
	"codes.go":                  func(string, string) bool { return true },
	"../policy/policy.go":       func(_, value string) bool { return value != "api_key" && value != "jwt" && value != "public" },
	"../gate/reasons.go":        func(string, string) bool { return true },
	"../proxy/route/route.go":   func(_, value string) bool { return strings.Contains(value, "_") },
	"../proxy/route/client.go":  func(string, string) bool { return true },
	"../proxy/route/failure.go": func(string, string) bool { return true },
	"../audit/spool/watch.go":   func(_, value string) bool { return strings.HasPrefix(value, "log_") },
	"../store/checkpoint.go":    func(name, _ string) bool { return strings.HasPrefix(name, "fork") },
	"../enrol/record.go":        func(name, _ string) bool { return strings.HasPrefix(name, "reason") },
}

// inFunctions are reasons that stand in a function instead of a constant.
var inFunctions = []string{
	"credential_not_yet_valid", "untrusted_domain", "chain_untrusted", "chain_too_long", "not_administrator", "unchanged", "refused",
	"join_unknown", "join_expired", "join_used", "no_identity", "fork_server",
}

// words are those of `parley status` about a connection.
var words = []string{"observed", "unknown", "mixed", "exposed"}

var codeShape = regexp.MustCompile(`^(PAR-[0-9]{4}|[a-z]+(_[a-z]+)*)$`)

// TestEveryCodeHasAPage reads the constants out of the source, so that a new one
// cannot be forgotten, and wants exactly their pages.
func TestEveryCodeHasAPage(t *testing.T) {
	t.Parallel()
	want := map[string]bool{}
	for _, code := range slices.Concat(inFunctions, words) {
		want[code] = true
	}
	for file, isCode := range where {
		found := 0
		for name, value := range constants(t, file) {
			if codeShape.MatchString(value) && isCode(name, value) {
				want[value] = true
				found++
			}
		}
		if found == 0 {
			t.Errorf("%s has no codes: have they moved?", file)
		}
	}
	for code := range want {
		if _, ok := fault.Page(code); !ok {
			t.Errorf("no internal/fault/pages/%s.md", code)
		}
	}
	for _, code := range fault.Pages() {
		if !want[code] {
			t.Errorf("internal/fault/pages/%s.md is about no code", code)
		}
	}
}

func TestPagesHaveOneShape(t *testing.T) {
	t.Parallel()
	for _, code := range fault.Pages() {
		text, _ := fault.Page(code)
		if !strings.HasPrefix(text, "# "+code+": ") || fault.Title(code) == "" {
			t.Errorf("%s: the first line is not \"# %s: title\"", code, code)
		}
		if n := len(fault.Title(code)); n > 72 {
			t.Errorf("%s: the title has %d characters, at most 72", code, n)
		}
		example, todo := strings.Index(text, "\n## Example\n\n    "), strings.Index(text, "\n## What to do\n\n- ")
		if example < 0 || todo < example {
			t.Errorf("%s: wants an indented ## Example and then a list under ## What to do", code)
		}
		if means := text[strings.Index(text, "\n"):max(example, 0)]; len(strings.TrimSpace(means)) < 40 {
			t.Errorf("%s: says nothing of what it means", code)
		}
	}
}

func TestPageOfNothing(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"", "PAR-9999", "../codes", "PAR-1001.md", "."} {
		if text, ok := fault.Page(code); ok || text != "" {
			t.Errorf("Page(%q) = %q, %v", code, text, ok)
		}
	}
	if !slices.IsSorted(fault.Pages()) {
		t.Error("Pages is not in order")
	}
}

// constants are the string constants that a file declares, by name.
func constants(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.CONST {
			continue
		}
		for _, s := range g.Specs {
			v := s.(*ast.ValueSpec)
			for i, x := range v.Values {
				if lit, ok := x.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					found[v.Names[i].Name], _ = strconv.Unquote(lit.Value)
				}
			}
		}
	}
	return found
}
