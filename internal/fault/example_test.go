package fault_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/fault"
)

// TestExamplesAreWhatIsSaid wants the error and the first hint of each page's
// example, and of docs/operate.md, to be one that the source can produce, so that
// whoever searches for what is on the screen finds the page. The mesh file's are made elsewhere and have
// golden files of their own.
func TestExamplesAreWhatIsSaid(t *testing.T) {
	t.Parallel()
	said := messages(t)
	shown := regexp.MustCompile(`(?m)^ *error\[(PAR-[2-5]\d{3})\]: (.*)\n(?: *hint: (.*)\n)?`)
	found := 0
	examples := map[string]string{}
	for _, name := range fault.Pages() {
		page, _ := fault.Page(name)
		_, example, _ := strings.Cut(page, "## Example")
		examples[name], _, _ = strings.Cut(example, "## What to do")
	}
	manual, err := os.ReadFile("../../docs/operate.md")
	if err != nil {
		t.Fatal(err)
	}
	examples["docs/operate.md"] = string(manual)
	for name, example := range examples {
		for _, m := range shown.FindAllStringSubmatch(example, -1) {
			found++
			if !matches(said[m[1]], m[2], m[3]) {
				t.Errorf("%s: nothing says\n%s", name, m[0])
			}
		}
	}
	if found < 35 {
		t.Errorf("%d examples: the test does not find them", found)
	}
}

// A message is what one place in the source may say, and its hint.
type message struct{ text, hint *regexp.Regexp }

func matches(all []message, text, hint string) bool {
	for _, m := range all {
		if m.text.MatchString(text) && m.hint.MatchString(hint) {
			return true
		}
	}
	return false
}

// messages are those of every call of New, Wrap and usage, by code.
func messages(t *testing.T) map[string][]message {
	t.Helper()
	codes, all := values(t), map[string][]message{}
	for _, root := range []string{"../../internal", "../../cmd"} {
		err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
			if err != nil {
				return err
			}
			ast.Inspect(file, func(n ast.Node) bool {
				if call, ok := n.(*ast.CallExpr); ok {
					if code, m, ok := read(call, codes); ok {
						all[code] = append(all[code], m)
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// read takes a call apart that makes a fault.
func read(call *ast.CallExpr, codes map[string]string) (code string, m message, ok bool) {
	at, end := 0, "$" // where code, hint and format begin
	switch f := call.Fun.(type) {
	case *ast.Ident:
		if f.Name != "usage" || len(call.Args) < 2 {
			return "", m, false
		}
		return string(fault.Usage), message{pattern(call.Args[1], "$"), pattern(call.Args[0], "$")}, true
	case *ast.SelectorExpr:
		switch f.Sel.Name {
		case "New":
		case "Wrap":
			at, end = 1, "(: .+)?$"
		default:
			return "", m, false
		}
	default:
		return "", m, false
	}
	if len(call.Args) < at+3 {
		return "", m, false
	}
	sel, ok := call.Args[at].(*ast.SelectorExpr)
	if !ok {
		return "", m, false
	}
	code, ok = codes[sel.Sel.Name]
	if code == string(fault.NotRunning) {
		end = "(: .+)?$" // it carries what was in the way
	}
	return code, message{pattern(call.Args[at+2], end), pattern(call.Args[at+1], "$")}, ok
}

// pattern matches what an expression may be: a literal with its verbs, a sum of
// literals and others, or anything.
func pattern(e ast.Expr, end string) *regexp.Regexp {
	return regexp.MustCompile("^" + parts(e) + end)
}

var verb = regexp.MustCompile(`%[-+#0-9.]*[a-zA-Z]`)

func parts(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		text, err := strconv.Unquote(e.Value)
		if err != nil {
			return ".*"
		}
		text, _, _ = strings.Cut(text, "\n") // a second line is a second hint
		fixed := verb.Split(text, -1)
		for i := range fixed {
			fixed[i] = regexp.QuoteMeta(fixed[i])
		}
		return strings.Join(fixed, ".+")
	case *ast.BinaryExpr:
		return parts(e.X) + parts(e.Y)
	case *ast.CallExpr:
		if f, ok := e.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "Sprintf" {
			return parts(e.Args[0])
		}
	}
	return ".*"
}

// values are the codes by the names of their constants.
func values(t *testing.T) map[string]string {
	t.Helper()
	file, err := parser.ParseFile(token.NewFileSet(), "codes.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	codes := map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok {
			codes[spec.Names[0].Name], _ = strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		}
		return true
	})
	return codes
}
