package parley_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
)

const (
	module = "github.com/parleymesh/parley"

	maxFunction = 80  // lines, brace to brace
	maxFile     = 700 // lines
)

// heavy is what a program that links the SDK must never get, by room or by
// import path.
var heavy = []string{
	"internal/store", "internal/enrol/ca", "internal/enrol", "internal/mesh", "internal/control", "internal/node", "internal/dev",
	"modernc.org/", "github.com/jackc/", "go.yaml.in/", "github.com/spf13/",
}

// TestLayout holds the tree to internal/layout.txt, internal/thirdparty.txt and
// the rules of this package. Everything is parsed in this process: a test that
// asked `go list` would be answered from Go's test cache, which does not see what
// a child process reads.
func TestLayout(t *testing.T) {
	t.Parallel()
	for _, complaint := range checkLayout(os.DirFS(".")) {
		t.Error(complaint)
	}
}

// checkLayout is every breach of the rules in the module at the root of fsys.
func checkLayout(fsys fs.FS) []string {
	h := &house{fsys: fsys, fset: token.NewFileSet(), packages: map[string]*pkg{}}
	h.readLayout()
	h.readThirdParty()
	h.readSources()
	h.checkRooms()
	h.checkCycles()
	h.checkImports()
	h.checkThirdParty()
	h.checkSDK()
	for _, p := range h.packages {
		h.checkPackageComment(p)
		for _, f := range p.files {
			h.checkFile(f)
		}
	}
	slices.Sort(h.complaints)
	return slices.Compact(h.complaints)
}

// A house is the module as the checks see it.
type house struct {
	fsys       fs.FS
	fset       *token.FileSet
	rooms      map[string][]string // layout.txt
	outside    []confined          // thirdparty.txt, longest path first
	packages   map[string]*pkg     // by folder
	complaints []string
}

// A confined is a line of thirdparty.txt; used marks who made use of it.
type confined struct {
	path string
	who  []string
	used map[string]bool
}

type pkg struct {
	dir   string
	files []*source
}

type source struct {
	path      string
	dir       string
	test      bool
	generated bool
	lines     int
	syntax    *ast.File
	imports   []string
}

func (h *house) complain(format string, args ...any) {
	h.complaints = append(h.complaints, fmt.Sprintf(format, args...))
}

func (h *house) readLayout() {
	h.rooms = map[string][]string{}
	for _, line := range h.lines("internal/layout.txt") {
		room, may, _ := strings.Cut(line, ":")
		if _, twice := h.rooms[room]; twice {
			h.complain("internal/layout.txt: %s stands there twice", room)
		}
		h.rooms[room] = strings.Fields(may)
	}
}

func (h *house) readThirdParty() {
	for _, line := range h.lines("internal/thirdparty.txt") {
		rule, reason, _ := strings.Cut(line, "#")
		name, who, _ := strings.Cut(rule, ":")
		if strings.TrimSpace(reason) == "" {
			h.complain("internal/thirdparty.txt: %s has no reason", name)
		}
		h.outside = append(h.outside, confined{path: name, who: strings.Fields(who), used: map[string]bool{}})
	}
	slices.SortFunc(h.outside, func(a, b confined) int { return len(b.path) - len(a.path) })
}

// lines is a rule file without blank lines and whole-line comments.
func (h *house) lines(name string) []string {
	data, err := fs.ReadFile(h.fsys, name)
	if err != nil {
		h.complain("%v", err)
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			lines = append(lines, line)
		}
	}
	return lines
}

// readSources parses every Go file of the module: not those of a module inside
// it, of testdata or of hidden folders.
func (h *house) readSources() {
	err := fs.WalkDir(h.fsys, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != ".":
			_, err := fs.Stat(h.fsys, path.Join(name, "go.mod"))
			if err == nil || d.Name() == "testdata" || d.Name()[0] == '.' || d.Name()[0] == '_' {
				return fs.SkipDir
			}
			return nil
		case !strings.HasSuffix(name, ".go"):
			return nil
		}
		return h.readSource(name)
	})
	if err != nil {
		h.complain("%v", err)
	}
}

func (h *house) readSource(name string) error {
	data, err := fs.ReadFile(h.fsys, name)
	if err != nil {
		return err
	}
	syntax, err := parser.ParseFile(h.fset, name, data, parser.ParseComments)
	if err != nil {
		return err
	}
	f := &source{
		path: name, dir: path.Dir(name), syntax: syntax, lines: strings.Count(string(data), "\n"),
		test: strings.HasSuffix(name, "_test.go"), generated: strings.HasSuffix(name, ".gen.go"),
	}
	for _, im := range syntax.Imports {
		f.imports = append(f.imports, strings.Trim(im.Path.Value, `"`+"`"))
	}
	if h.packages[f.dir] == nil {
		h.packages[f.dir] = &pkg{dir: f.dir}
	}
	h.packages[f.dir].files = append(h.packages[f.dir].files, f)
	return nil
}

// room is the name that layout.txt gives a folder.
func room(dir string) string {
	if dir == "." {
		return "parley"
	}
	switch first, _, _ := strings.Cut(dir, "/"); first {
	case "examples", "bench", "interop":
		return first
	}
	return strings.TrimPrefix(dir, "internal/")
}

// folder is the folder of the package of ours that an import names, "" for
// other people's.
func folder(importPath string) string {
	if importPath == module {
		return "."
	}
	dir, ours := strings.CutPrefix(importPath, module+"/")
	if !ours {
		return ""
	}
	return dir
}

// source returns the files that are linked into programs.
func (p *pkg) source() []*source {
	return slices.DeleteFunc(slices.Clone(p.files), func(f *source) bool { return f.test })
}
