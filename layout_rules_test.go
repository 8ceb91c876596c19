package parley_test

import (
	"go/ast"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
)

// checkRooms: whatever has code is listed, whatever is listed has code.
func (h *house) checkRooms() {
	real := map[string]bool{}
	for dir, p := range h.packages {
		if len(p.source()) == 0 {
			continue
		}
		real[room(dir)] = true
		if _, listed := h.rooms[room(dir)]; !listed {
			h.complain("%s: not in internal/layout.txt", dir)
		}
	}
	for r, may := range h.rooms {
		if !real[r] {
			h.complain("internal/layout.txt: %s does not exist", r)
		}
		for _, m := range may {
			if _, listed := h.rooms[m]; !listed && m != "*" {
				h.complain("internal/layout.txt: %s may import %s, which is not listed", r, m)
			}
		}
	}
}

// checkCycles: the permissions are acyclic, so that no cycle of rooms can arise
// by small steps.
func (h *house) checkCycles() {
	const entered, left = 1, 2
	state := map[string]int{}
	var visit func(r string, way []string)
	visit = func(r string, way []string) {
		switch state[r] {
		case left:
			return
		case entered:
			h.complain("internal/layout.txt: cycle %s", strings.Join(append(way[slices.Index(way, r):], r), " -> "))
			return
		}
		state[r] = entered
		for _, m := range h.rooms[r] {
			visit(m, append(slices.Clone(way), r))
		}
		state[r] = left
	}
	for _, r := range slices.Sorted(maps.Keys(h.rooms)) {
		visit(r, nil)
	}
}

// top are the rooms that "*" does not stand for.
func top(r string) bool {
	first, _, _ := strings.Cut(r, "/")
	return slices.Contains([]string{"node", "dev", "parley", "parleytest", "cmd", "bench", "interop", "examples"}, first)
}

// checkImports: rooms import what layout.txt lets them, and test kits are for
// tests.
func (h *house) checkImports() {
	for dir, p := range h.packages {
		may, listed := h.rooms[room(dir)]
		for _, f := range p.files {
			for _, im := range f.imports {
				to := folder(im)
				if to == "" {
					continue
				}
				if h.kit(to) && !f.test && !h.kit(dir) {
					h.complain("%s: %s is for tests only", f.path, to)
					continue
				}
				allowed := slices.Contains(may, room(to)) || slices.Contains(may, "*") && !top(room(to))
				if !f.test && listed && !allowed {
					h.complain("%s: %s may not import %s", f.path, room(dir), room(to))
				}
			}
		}
	}
}

// kit says that a folder holds fakes and suites for tests.
func (*house) kit(dir string) bool { return path.Base(dir) == "xtest" || dir == "parleytest" }

// checkThirdParty: other people's code is imported where thirdparty.txt says,
// and every permission is made use of.
func (h *house) checkThirdParty() {
	for dir, p := range h.packages {
		for _, f := range p.files {
			for _, im := range f.imports {
				if first, _, _ := strings.Cut(im, "/"); folder(im) == "" && strings.Contains(first, ".") {
					h.useThirdParty(f, room(dir), im)
				}
			}
		}
	}
	for _, c := range h.outside {
		for _, who := range c.who {
			if !c.used[who] {
				h.complain("internal/thirdparty.txt: %s does not import %s", who, c.path)
			}
		}
	}
}

func (h *house) useThirdParty(f *source, r, im string) {
	i := slices.IndexFunc(h.outside, func(c confined) bool { return im == c.path || strings.HasPrefix(im, c.path+"/") })
	switch {
	case i < 0:
		h.complain("%s: %s is not in internal/thirdparty.txt", f.path, im)
	case slices.Contains(h.outside[i].who, r):
		h.outside[i].used[r] = true
	case f.test && slices.Contains(h.outside[i].who, "tests"):
		h.outside[i].used["tests"] = true
	default:
		h.complain("%s: %s may not import %s", f.path, r, im)
	}
}

// checkSDK: a program that links the SDK gets no database, no CA and no YAML.
func (h *house) checkSDK() {
	seen := map[string]bool{}
	var visit func(dir string, way []string)
	visit = func(dir string, way []string) {
		if seen[dir] || h.packages[dir] == nil {
			return
		}
		seen[dir] = true
		for _, f := range h.packages[dir].source() {
			for _, im := range f.imports {
				target := im
				if d := folder(im); d != "" {
					target = d
				}
				if heavyImport(target) {
					h.complain("the SDK links %s: %s", target, strings.Join(append(way, room(dir), target), " -> "))
					continue
				}
				visit(target, append(slices.Clone(way), room(dir)))
			}
		}
	}
	visit(".", nil)
}

func heavyImport(target string) bool {
	return slices.ContainsFunc(heavy, func(h string) bool {
		return target == h || strings.HasSuffix(h, "/") && strings.HasPrefix(target, h)
	})
}

// checkPackageComment: exactly one file says what the package is.
func (h *house) checkPackageComment(p *pkg) {
	var with []string
	for _, f := range p.source() {
		if f.syntax.Doc != nil && !f.generated {
			with = append(with, path.Base(f.path))
		}
	}
	if len(p.source()) > 0 && len(with) != 1 {
		slices.Sort(with)
		h.complain("%s: %d package comments, want 1 %v", p.dir, len(with), with)
	}
}

// checkFile: sizes, init functions and banned names.
func (h *house) checkFile(f *source) {
	if f.lines >= maxFile && !f.generated {
		h.complain("%s: %d lines, want fewer than %d", f.path, f.lines, maxFile)
	}
	for _, d := range f.syntax.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok {
			continue
		}
		if fn.Name.Name == "init" && fn.Recv == nil {
			h.complain("%s: init function", f.path)
		}
		if n := h.fset.Position(fn.End()).Line - h.fset.Position(fn.Pos()).Line + 1; n >= maxFunction && !f.test && !f.generated {
			h.complain("%s: %s has %d lines, want fewer than %d", f.path, fn.Name.Name, n, maxFunction)
		}
	}
	h.checkNames(f)
}

// A ban refuses names of a package of the standard library outside some folders.
type ban struct {
	path  string
	names []string
	// except are folders, with all below them, where the names may stand.
	except []string
	// tests says that the ban holds in tests and test kits too.
	tests bool
	why   string
}

// programs are folders of programs of their own, which read their environment,
// print and exit; the last three are no part of the product.
var programs = []string{"cmd", "bench", "interop", "examples"}

// tlsMakers may make a tls.Config: mtls, and dev and assess, whose strangers make
// wrong ones on purpose to show that they are refused.
var tlsMakers = []string{"internal/mtls", "internal/dev", "internal/assess"}

var bans = []ban{
	{
		path: "time", names: []string{"Now", "After", "AfterFunc", "Sleep", "Since", "Until", "Tick", "NewTimer", "NewTicker"},
		except: []string{"internal/clock", "bench", "interop", "examples"}, why: "time comes from internal/clock",
	},
	{
		path: "os", names: []string{"Getenv", "LookupEnv", "Environ", "ExpandEnv"},
		// The client reads the one variable that its standard names, the store looks
		// where its driver gets a password from.
		except: append([]string{"internal/workload/client", "internal/store"}, programs...), why: "only the command reads its environment",
	},
	{
		path: "crypto/tls", names: []string{"Dial", "DialWithDialer", "Dialer", "Listen"},
		// The command looks at certificates of any server, and sends it nothing.
		except: append([]string{"cmd/parley", "bench", "interop", "examples"}, tlsMakers...), why: "TLS is spoken by internal/mtls",
	},
	{path: "os", names: []string{"Exit"}, except: programs, why: "only the command exits"},
	{path: "fmt", names: []string{"Print", "Printf", "Println"}, except: programs, why: "only the command prints"},
	{
		path: "net/http", names: []string{"DefaultClient", "Get", "Head", "Post", "PostForm"}, tests: true,
		why: "a client has a transport and a time limit of its own",
	},
}

// checkNames: nobody uses what the bans refuse, and TLS is configured in one
// place.
func (h *house) checkNames(f *source) {
	names := imported(f.syntax)
	if names["."] != "" {
		h.complain("%s: import of %s with a dot", f.path, names["."])
	}
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		if star, ok := n.(*ast.StarExpr); ok && selects(names, star.X, "crypto/tls", "Config") {
			return false // a pointer passes a configuration on, it makes none
		}
		x, ok := n.(ast.Expr)
		if !ok {
			return true
		}
		if selects(names, x, "crypto/tls", "Config") && !f.test && !h.kit(f.dir) && !slices.ContainsFunc(tlsMakers, func(dir string) bool { return under(f.dir, dir) }) {
			h.complain("%s: tls.Config is made in internal/mtls only", f.path)
		}
		for _, b := range bans {
			exempt := !b.tests && (f.test || h.kit(f.dir)) || slices.ContainsFunc(b.except, func(dir string) bool { return under(f.dir, dir) })
			if sel, ok := x.(*ast.SelectorExpr); ok && !exempt && slices.Contains(b.names, sel.Sel.Name) && selects(names, x, b.path, sel.Sel.Name) {
				h.complain("%s: %s.%s: %s", f.path, path.Base(b.path), sel.Sel.Name, b.why)
			}
		}
		return true
	})
}

// imported maps the names that a file gives its imports to their paths.
func imported(f *ast.File) map[string]string {
	names := map[string]string{}
	for _, im := range f.Imports {
		p, _ := strconv.Unquote(im.Path.Value)
		name := path.Base(p)
		if im.Name != nil {
			name = im.Name.Name
		}
		names[name] = p
	}
	return names
}

// selects says that x is the name of the package at importPath. The parser
// resolves local variables, so a variable called like the package is none.
func selects(names map[string]string, x ast.Expr, importPath, name string) bool {
	sel, ok := x.(*ast.SelectorExpr)
	if !ok || sel.Sel.Name != name {
		return false
	}
	id, ok := sel.X.(*ast.Ident)
	return ok && id.Obj == nil && names[id.Name] == importPath
}

func under(dir, parent string) bool { return dir == parent || strings.HasPrefix(dir, parent+"/") }
