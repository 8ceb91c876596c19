package fault_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/fault"
)

func TestFaultError(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		f    *fault.Fault
		want string
	}{
		{"message", fault.New(fault.KeyMode, "chmod 600 k", "the key %s", "k"), "the key k"},
		{"cause", fault.Wrap(fs.ErrPermission, fault.KeyUnreadable, "", "the key k"), "the key k: permission denied"},
		{"file", &fault.Fault{File: "mesh.yaml", Message: "empty"}, "mesh.yaml: empty"},
		{"place", &fault.Fault{File: "mesh.yaml", Line: 3, Column: 7, Message: "unknown key"}, "mesh.yaml:3:7: unknown key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if got := tt.f.Error(); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestWrapKeepsTheCause(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("start: %w", fault.Wrap(fs.ErrNotExist, fault.KeyUnreadable, "", "no key"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v is not its cause", err)
	}
}

func TestList(t *testing.T) {
	t.Parallel()
	if err := (fault.List{}).Err(); err != nil {
		t.Errorf("an empty list is the error %v", err)
	}
	one, two := fault.New(fault.MeshType, "", "one"), fault.Wrap(fs.ErrClosed, fault.MeshValue, "", "two")
	err := fault.List{one, two}.Err()
	if got, want := err.Error(), "one\ntwo: file already closed"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	var f *fault.Fault
	if !errors.As(err, &f) || f != one || !errors.Is(err, fs.ErrClosed) {
		t.Errorf("errors.As and errors.Is do not look into the list")
	}
}

func TestAll(t *testing.T) {
	t.Parallel()
	one, two := fault.New(fault.MeshType, "", "one"), fault.New(fault.MeshValue, "", "two")
	tests := []struct {
		name string
		err  error
		want fault.List
	}{
		{"nil", nil, nil},
		{"other error", fs.ErrClosed, nil},
		{"fault", fmt.Errorf("x: %w", one), fault.List{one}},
		{"list", fmt.Errorf("x: %w", fault.List{one, two}), fault.List{one, two}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := fault.All(tt.err)
			if len(got) != len(tt.want) {
				t.Fatalf("got %v, want %v", got, tt.want)
			}
			for i := range got {
				if got[i] != tt.want[i] {
					t.Errorf("got %v, want %v", got[i], tt.want[i])
				}
			}
		})
	}
}

func TestJSON(t *testing.T) {
	t.Parallel()
	f := &fault.Fault{
		Code: fault.MeshUnknownKey, Message: "unknown key", File: "mesh.yaml", Line: 1, Column: 2, EndColumn: 4,
		Hint: "did you mean to?", Source: []string{"secret: x"}, Err: fs.ErrClosed,
	}
	out, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	want := `{"code":"PAR-1002","message":"unknown key","file":"mesh.yaml","line":1,"column":2,"end_column":4,"help":"did you mean to?"}`
	if diff := cmp.Diff(want, string(out)); diff != "" {
		t.Error(diff)
	}
}

// The codes are an interface: each unique, of the known form, explained by a
// comment, and in ascending order within its group, so that a new one goes last.
func TestCodes(t *testing.T) {
	t.Parallel()
	file, err := parser.ParseFile(token.NewFileSet(), "codes.go", nil, parser.ParseComments)
	if err != nil {
		t.Fatal(err)
	}
	form := regexp.MustCompile(`^PAR-([1-5])\d{3}$`)
	seen, last := map[string]string{}, map[string]string{}
	ast.Inspect(file, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		name := spec.Names[0].Name
		code, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
		if err != nil {
			t.Fatal(err)
		}
		m := form.FindStringSubmatch(code)
		if m == nil {
			t.Fatalf("%s is %q", name, code)
		}
		if other, twice := seen[code]; twice {
			t.Errorf("%s and %s are both %s", other, name, code)
		}
		if spec.Comment == nil || strings.TrimSpace(spec.Comment.Text()) == "" {
			t.Errorf("%s has no comment", name)
		}
		if code < last[m[1]] {
			t.Errorf("%s %s stands behind %s", name, code, last[m[1]])
		}
		seen[code], last[m[1]] = name, code
		return true
	})
	if len(seen) < 40 {
		t.Errorf("found %d codes only", len(seen))
	}
}
