package parley_test

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mesh"
)

var (
	code    = regexp.MustCompile("`([^`]+)`")
	heading = regexp.MustCompile("(?m)^#+ (.*)$")
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	block   = regexp.MustCompile("(?ms)^```([a-z]*)\n(.*?)^```$")
)

// manuals are the documents that are held to the tree.
func manuals(t *testing.T) []string {
	t.Helper()
	files, err := filepath.Glob("docs/*.md")
	if err != nil || len(files) < 6 {
		t.Fatal(files, err)
	}
	return append(files, "README.md", "ARCHITECTURE.md")
}

// rows are the table rows of a document below the heading that is given with
// each, as cells; the line under a table's head is left out.
func rows(text string, each func(heading string, cells []string)) {
	at := ""
	for line := range strings.Lines(block.ReplaceAllString(text, "")) {
		if m := heading.FindStringSubmatch(strings.TrimSuffix(line, "\n")); m != nil {
			at = m[1]
		}
		line, ok := strings.CutPrefix(strings.TrimSpace(line), "|")
		if !ok || strings.HasPrefix(line, "---") {
			continue
		}
		cells := strings.Split(strings.TrimSuffix(line, "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		each(at, cells)
	}
}

// codes are the pieces of text that are written as code, without the blocks.
func codes(text string) (out []string) {
	for _, m := range code.FindAllStringSubmatch(block.ReplaceAllString(text, ""), -1) {
		out = append(out, m[1])
	}
	return out
}

// TestDependencies holds the last column of docs/dependencies.md to
// internal/thirdparty.txt, both ways.
func TestDependencies(t *testing.T) {
	t.Parallel()
	allowed := map[string][]string{} // import path to rooms
	for line := range strings.Lines(read(t, "internal/thirdparty.txt")) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), " #")
		path, rooms, ok := strings.Cut(line, ": ")
		if ok && !strings.HasPrefix(line, "#") {
			allowed[path] = slices.DeleteFunc(strings.Fields(rooms), func(r string) bool { return r == "tests" })
		}
	}
	for line := range strings.Lines(read(t, "docs/dependencies.md")) {
		cells := strings.Split(line, "|")
		if len(cells) != 7 || !strings.Contains(cells[1], "`") {
			continue
		}
		var want []string
		for _, module := range codes(cells[1]) {
			found := false
			for path, rooms := range allowed {
				if path == module || strings.HasPrefix(path, module+"/") {
					found, want = true, append(want, rooms...)
					delete(allowed, path)
				}
			}
			if !found {
				t.Errorf("docs/dependencies.md has %s, which nobody may import", module)
			}
		}
		got := codes(cells[5])
		slices.Sort(want)
		slices.Sort(got)
		if want = slices.Compact(want); !slices.Equal(got, want) {
			t.Errorf("docs/dependencies.md confines %s to %q, internal/thirdparty.txt to %q", strings.TrimSpace(cells[1]), got, want)
		}
	}
	for path, rooms := range allowed {
		if len(rooms) > 0 {
			t.Errorf("docs/dependencies.md does not have %s of %q", path, rooms)
		}
	}
}

// TestMeshFileKeys holds the tables of docs/mesh-file.md to the schema: the same
// keys, and of each whether it is required and what its default is.
func TestMeshFileKeys(t *testing.T) {
	t.Parallel()
	var root map[string]any
	if err := json.Unmarshal(mesh.Schema(), &root); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{}
	schemaKeys(root, root, "", want)
	got := map[string]string{}
	rows(read(t, "docs/mesh-file.md"), func(heading string, cells []string) {
		if cells[0] == "key" {
			return
		}
		where := strings.Join(codes(heading), "")
		if where != "" {
			where += "."
		}
		for _, key := range codes(cells[0]) {
			if len(cells) != 5 {
				t.Errorf("%s%s has %d cells, want 5", where, key, len(cells))
				continue
			}
			said := ""
			if cells[2] == "required" {
				said = "required"
			} else if wanted := want[where+key]; wanted != "" && slices.Contains(codes(cells[2]), wanted) {
				said = wanted
			}
			got[where+key] = said
		}
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/mesh-file.md is not the schema (-schema +document):\n%s", diff)
	}
}

// schemaKeys collects every key by its path with "required", its default or "".
func schemaKeys(root, s map[string]any, where string, out map[string]string) {
	if ref, ok := s["$ref"].(string); ok {
		def := root["$defs"].(map[string]any)[strings.TrimPrefix(ref, "#/$defs/")]
		schemaKeys(root, def.(map[string]any), where, out)
	}
	alternatives, _ := s["oneOf"].([]any)
	for _, a := range alternatives {
		schemaKeys(root, a.(map[string]any), where, out)
	}
	if items, ok := s["items"].(map[string]any); ok {
		schemaKeys(root, items, where+"[]", out)
	}
	if named, ok := s["additionalProperties"].(map[string]any); ok {
		schemaKeys(root, named, where+".NAME", out)
	}
	required, _ := s["required"].([]any)
	properties, _ := s["properties"].(map[string]any)
	for name, p := range properties {
		at := strings.TrimPrefix(where+"."+name, ".")
		out[at] = ""
		switch def := p.(map[string]any)["default"].(type) {
		case string:
			out[at] = def
		case float64:
			out[at] = strconv.FormatFloat(def, 'f', -1, 64)
		}
		if slices.Contains(required, any(name)) {
			out[at] = "required"
		}
		schemaKeys(root, p.(map[string]any), at, out)
	}
}

// TestMeshFileExamples parses every YAML block of the documents that is a whole
// mesh file.
func TestMeshFileExamples(t *testing.T) {
	t.Parallel()
	whole := 0
	for _, name := range manuals(t) {
		for _, b := range block.FindAllStringSubmatch(read(t, name), -1) {
			if b[1] != "yaml" || !strings.Contains("\n"+b[2], "\ntrust_domain:") {
				continue
			}
			whole++
			if _, err := mesh.Parse(name, []byte(b[2])); err != nil {
				t.Errorf("%s: %v\n%s", name, err, b[2])
			}
		}
	}
	if whole < 3 {
		t.Errorf("%d whole mesh files, want at least 3: the test finds no blocks", whole)
	}
}

// TestAuditFields holds the last table of docs/audit.md to the JSON of an event.
func TestAuditFields(t *testing.T) {
	t.Parallel()
	want := eventFields(reflect.TypeFor[audit.Event](), "")
	var got []string
	rows(read(t, "docs/audit.md"), func(heading string, cells []string) {
		if heading == "The event, field by field" {
			got = append(got, codes(cells[0])...)
		}
	})
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("docs/audit.md is not audit.Event (-event +document):\n%s", diff)
	}
}

func eventFields(typ reflect.Type, prefix string) (out []string) {
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		kind := f.Type
		if kind.Kind() == reflect.Pointer {
			kind = kind.Elem()
		}
		leaf := kind == reflect.TypeFor[time.Time]() || kind == reflect.TypeFor[identity.ID]()
		if kind.Kind() == reflect.Struct && !leaf {
			out = append(out, eventFields(kind, prefix+name+".")...)
			continue
		}
		out = append(out, prefix+name)
	}
	return out
}

// TestAuditActions holds the table of actions to the registry of package audit.
func TestAuditActions(t *testing.T) {
	t.Parallel()
	var got []string
	rows(read(t, "docs/audit.md"), func(heading string, cells []string) {
		if heading == "What is recorded, and when" && len(cells) == 2 {
			got = append(got, codes(cells[0])...)
		}
	})
	want := constants(t, "internal/audit/event.go", "Action")
	var listed []string
	for _, a := range audit.Actions() {
		listed = append(listed, string(a))
	}
	if diff := cmp.Diff(want, listed); diff != "" {
		t.Errorf("audit.Actions is not the registry (-registry +list):\n%s", diff)
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" || len(want) == 0 {
		t.Errorf("docs/audit.md does not name the actions (-registry +document):\n%s", diff)
	}
}

// constants are the values of the constants of a type in one file.
func constants(t *testing.T, file, typ string) (out []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if id, ok := spec.Type.(*ast.Ident); ok && id.Name == typ {
			value, err := strconv.Unquote(spec.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, value)
		}
		return true
	})
	return out
}

// TestReasonsAreNamed wants each reason that has a page in docs/audit.md or, for
// those that a refused caller sees, in docs/policy.md; and the words of status in
// docs/operate.md.
func TestReasonsAreNamed(t *testing.T) {
	t.Parallel()
	named := codes(read(t, "docs/audit.md") + read(t, "docs/policy.md") + read(t, "docs/operate.md"))
	for _, page := range fault.Pages() {
		if !strings.HasPrefix(page, "PAR-") && !slices.Contains(named, page) {
			t.Errorf("none of docs/audit.md, docs/policy.md and docs/operate.md names `%s`", page)
		}
	}
}

// TestCodesExist wants a page for each PAR code that a document names.
func TestCodesExist(t *testing.T) {
	t.Parallel()
	pattern := regexp.MustCompile(`PAR-[0-9]{4}`)
	for _, name := range manuals(t) {
		for _, c := range pattern.FindAllString(read(t, name), -1) {
			if _, ok := fault.Page(c); !ok {
				t.Errorf("%s names %s, which has no page", name, c)
			}
		}
	}
}

// TestMetricsAreNamed wants each metric of the tree in docs/operate.md, and no
// other there.
func TestMetricsAreNamed(t *testing.T) {
	t.Parallel()
	pattern := regexp.MustCompile(`"(parley_[a-z_]+)"`)
	var want, got []string
	for _, dir := range []string{"internal/node", "internal/node/agent", "internal/proxy", "internal/gate", "internal/audit/spool", "internal/mtls", "internal/fetch", "internal/resolve"} {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil || len(files) == 0 {
			t.Fatal(dir, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			for _, m := range pattern.FindAllStringSubmatch(read(t, file), -1) {
				want = append(want, m[1])
			}
		}
	}
	rows(read(t, "docs/operate.md"), func(heading string, cells []string) {
		if heading == "Health and metrics" && cells[0] != "metric" {
			got = append(got, codes(cells[0])...)
		}
	})
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(slices.Compact(want), got); diff != "" {
		t.Errorf("docs/operate.md does not name the metrics (-tree +document):\n%s", diff)
	}
}

// TestLinks follows every relative link of the documents, to its file and, in a
// document, to its heading.
func TestLinks(t *testing.T) {
	t.Parallel()
	for _, name := range manuals(t) {
		for _, m := range link.FindAllStringSubmatch(block.ReplaceAllString(read(t, name), ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			target, anchor, _ := strings.Cut(m[1], "#")
			file := filepath.ToSlash(name)
			if target != "" {
				file = path.Join(path.Dir(file), target)
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s: the link %s leads to no file", name, m[1])
			} else if anchor != "" && !slices.Contains(anchors(read(t, file)), anchor) {
				t.Errorf("%s: the link %s leads to no heading", name, m[1])
			}
		}
	}
}

// anchors are the names that a forge gives the headings of a document.
func anchors(text string) (out []string) {
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		out = append(out, strings.Map(func(c rune) rune {
			switch {
			case c == ' ':
				return '-'
			case c == '-', c == '_', 'a' <= c && c <= 'z', '0' <= c && c <= '9':
				return c
			}
			return -1
		}, strings.ToLower(m[1])))
	}
	return out
}

// TestGoSnippets wants each block of Go in the documents to stand in an example,
// word for word: those are compiled.
func TestGoSnippets(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("examples/*/main.go")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	compiled := ""
	for _, file := range files {
		compiled += strings.ReplaceAll(read(t, file), "\n\t", "\n")
	}
	found := 0
	for _, name := range manuals(t) {
		for _, b := range block.FindAllStringSubmatch(read(t, name), -1) {
			if b[1] != "go" {
				continue
			}
			found++
			if !strings.Contains(compiled, b[2]) {
				t.Errorf("%s: no example has\n%s", name, b[2])
			}
		}
	}
	if found == 0 {
		t.Error("the test finds no Go")
	}
}
