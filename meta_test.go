package parley_test

import (
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"
)

// The longest that a document may be, in lines: a newcomer reads it in one go.
var documents = map[string]int{"README.md": 120, "ARCHITECTURE.md": 150}

func TestDocumentsAreShort(t *testing.T) {
	t.Parallel()
	for name, limit := range documents {
		if n := strings.Count(read(t, name), "\n"); n > limit {
			t.Errorf("%s has %d lines, at most %d", name, n, limit)
		}
	}
}

// TestArchitectureNamesEveryRoom wants each room of layout.txt in ARCHITECTURE.md:
// as code (`gate`), as a folder (gate/), by its path (gate/authn), or in the line
// of the tree that begins with the room above it.
func TestArchitectureNamesEveryRoom(t *testing.T) {
	t.Parallel()
	architecture := read(t, "ARCHITECTURE.md")
	h := &house{fsys: os.DirFS(".")}
	h.readLayout()
	for r := range h.rooms {
		if inside := strings.HasPrefix(dirOf(r), "internal/"); inside && !h.kit(r) && !namesRoom(architecture, r) {
			t.Errorf("ARCHITECTURE.md does not name the room `%s`", r)
		}
	}
}

func namesRoom(text, r string) bool {
	name := regexp.QuoteMeta(r)
	pattern := "`" + name + "`|(^|[^/\\w])(internal/)?" + name + "/"
	if parent, leaf := path.Split(r); parent != "" {
		pattern += `|(^|[^/\w])(internal/)?` + name + `\b|(?m)^ +` + regexp.QuoteMeta(parent) + ` .*\b` + regexp.QuoteMeta(leaf) + "/"
	}
	return regexp.MustCompile(pattern).MatchString(text)
}

// TestGoMod: what we test is what `go install` gets, so nothing is replaced, and
// every module that is required directly has a line in thirdparty.txt.
func TestGoMod(t *testing.T) {
	t.Parallel()
	mod, err := modfile.Parse("go.mod", []byte(read(t, "go.mod")), nil)
	if err != nil {
		t.Fatal(err)
	}
	if mod.Module.Mod.Path != module {
		t.Errorf("module %s, want %s", mod.Module.Mod.Path, module)
	}
	for _, r := range mod.Replace {
		t.Errorf("go.mod replaces %s", r.Old.Path)
	}
	h := &house{fsys: os.DirFS(".")}
	h.readThirdParty()
	for _, r := range mod.Require {
		listed := slices.ContainsFunc(h.outside, func(c confined) bool {
			return c.path == r.Mod.Path || strings.HasPrefix(c.path, r.Mod.Path+"/")
		})
		if !r.Indirect && !listed {
			t.Errorf("go.mod requires %s, which is not in internal/thirdparty.txt", r.Mod.Path)
		}
	}
}

func TestLicence(t *testing.T) {
	t.Parallel()
	text := read(t, "LICENSE")
	if !strings.Contains(text, "Apache License") || !strings.Contains(text, "Version 2.0, January 2004") {
		t.Error("LICENSE is not the Apache License, version 2.0")
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
