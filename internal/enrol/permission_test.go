package enrol_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"strings"
	"testing"
)

// The choke point is a property of the source: the authority signs in one place
// for each kind, and a filled Permission is made in one.
func TestOneChokePoint(t *testing.T) {
	t.Parallel()
	calls := map[string][]string{}
	entries, err := os.ReadDir(".")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), e.Name(), nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok {
				continue
			}
			ast.Inspect(fn, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.SelectorExpr:
					if n.Sel.Name == "SignX509" || n.Sel.Name == "SignJWT" || n.Sel.Name == "SignProbe" {
						calls[n.Sel.Name] = append(calls[n.Sel.Name], fn.Name.Name)
					}
				case *ast.CompositeLit:
					if id, ok := n.Type.(*ast.Ident); ok && (id.Name == "Permission" || id.Name == "probePermission") && len(n.Elts) > 0 {
						calls[id.Name] = append(calls[id.Name], fn.Name.Name)
					}
				}
				return true
			})
		}
	}
	for what, where := range map[string]string{"SignX509": "signX509", "SignJWT": "signJWT", "SignProbe": "IssueProbe", "Permission": "decide", "probePermission": "decideProbe"} {
		if got := calls[what]; len(got) != 1 || got[0] != where {
			t.Errorf("%s is used in %v, want %s alone", what, got, where)
		}
	}
}
