package parley_test

import (
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/google/go-cmp/cmp"
)

// plant is one breach: files that replace or extend those of the skeleton, "" to
// remove one, and "+..." to append to one.
type plant map[string]string

// TestLayoutCatches plants one breach of each rule in a copy of the house and
// wants exactly the complaint about it.
func TestLayoutCatches(t *testing.T) {
	t.Parallel()
	base := skeleton(t)
	if got := checkLayout(base); len(got) > 0 {
		t.Fatalf("the skeleton is not clean:\n%s", strings.Join(got, "\n"))
	}
	body := func(n int) string { return strings.Repeat("\t_ = 0\n", n) }
	code := func(imports, decls string) string { return "package x\n\nimport " + imports + "\n\n" + decls + "\n" }
	for name, tc := range map[string]struct {
		plant plant
		want  string
	}{
		"unlisted room": {
			plant{"internal/helper/x.go": "// Package helper is a grab bag.\npackage helper\n"},
			"internal/helper: not in internal/layout.txt",
		},
		"unlisted folder outside internal": {
			plant{"pkg/x.go": "// Package pkg is.\npackage pkg\n"},
			"pkg: not in internal/layout.txt",
		},
		"listed room is missing": {
			plant{"internal/metric/x.go": ""},
			"internal/layout.txt: metric does not exist",
		},
		"room listed twice": {
			plant{"internal/layout.txt": "+\nclock:\n"},
			"internal/layout.txt: clock stands there twice",
		},
		"permission names no room": {
			plant{"internal/layout.txt": strings.Replace(text(t, base, "internal/layout.txt"), "\nmetric:", "\nmetric: nowhere", 1)},
			"internal/layout.txt: metric may import nowhere, which is not listed",
		},
		"forbidden import": {
			plant{"internal/identity/y.go": code(`_ "`+module+`/internal/policy"`, "")},
			"internal/identity/y.go: identity may not import policy",
		},
		"star is not the hub": {
			plant{"internal/node/agent/y.go": code(`_ "`+module+`/internal/dev"`, "")},
			"internal/node/agent/y.go: node/agent may not import dev",
		},
		"the root is a room": {
			plant{"internal/identity/y.go": code(`_ "`+module+`"`, "")},
			"internal/identity/y.go: identity may not import parley",
		},
		"cycle": {
			plant{"internal/layout.txt": strings.Replace(text(t, base, "internal/layout.txt"), "\nidentity:", "\nidentity: policy", 1)},
			"internal/layout.txt: cycle identity -> policy -> identity",
		},
		"third party outside its room": {
			plant{"internal/policy/y.go": code(`_ "go.yaml.in/yaml/v3"`, "")},
			"internal/policy/y.go: policy may not import go.yaml.in/yaml/v3",
		},
		"third party outside its room in a test": {
			plant{"internal/policy/y_test.go": code(`_ "modernc.org/sqlite"`, "")},
			"internal/policy/y_test.go: policy may not import modernc.org/sqlite",
		},
		"unlisted third party": {
			plant{"internal/policy/y.go": code(`_ "example.com/left-pad"`, "")},
			"internal/policy/y.go: example.com/left-pad is not in internal/thirdparty.txt",
		},
		"third party without a reason": {
			plant{"internal/thirdparty.txt": "+\nexample.com/x:\n"},
			"internal/thirdparty.txt: example.com/x has no reason",
		},
		"third party that nobody uses": {
			plant{"internal/thirdparty.txt": "+\nexample.com/x: mesh # because\n"},
			"internal/thirdparty.txt: mesh does not import example.com/x",
		},
		"test kit in a program": {
			plant{
				"internal/layout.txt":         "+\nenrol/xtest:\n",
				"internal/enrol/xtest/x.go":   "// Package xtest is.\npackage xtest\n",
				"internal/enrol/y.go":         code(`_ "`+module+`/internal/enrol/xtest"`, ""),
				"internal/enrol/y_test.go":    code(`_ "`+module+`/internal/enrol/xtest"`, ""),
				"internal/enrol/xtest/now.go": code(`"time"`, "var _ = time.Now"),
			},
			"internal/enrol/y.go: internal/enrol/xtest is for tests only",
		},
		"the SDK links a heavy room": {
			plant{
				"internal/layout.txt":           strings.Replace(text(t, base, "internal/layout.txt"), "\nworkload/client:", "\nworkload/client: store", 1),
				"internal/workload/client/y.go": code(`_ "`+module+`/internal/store"`, ""),
			},
			"the SDK links internal/store: parley -> workload/client -> internal/store",
		},
		"the SDK links a heavy module": {
			plant{
				"internal/thirdparty.txt":       "+\ngo.yaml.in/yaml/v3/light: workload/client # planted\n",
				"internal/workload/client/y.go": code(`_ "go.yaml.in/yaml/v3/light"`, ""),
			},
			"the SDK links go.yaml.in/yaml/v3/light: parley -> workload/client -> go.yaml.in/yaml/v3/light",
		},
		"no package comment": {
			plant{"cmd/parley/x.go": strings.SplitAfterN(text(t, base, "cmd/parley/x.go"), "\n", 2)[1]},
			"cmd/parley: 0 package comments, want 1 []",
		},
		"two package comments": {
			plant{"examples/y.go": "// Package x is, again.\npackage x\n"},
			"examples: 2 package comments, want 1 [x.go y.go]",
		},
		"init function": {
			plant{"internal/call/y.go": "package call\n\nfunc init() {}\n"},
			"internal/call/y.go: init function",
		},
		"init function in a test": {
			plant{"internal/call/y_test.go": "package call\n\nfunc init() {}\n"},
			"internal/call/y_test.go: init function",
		},
		"long function": {
			plant{"internal/call/y.go": "package call\n\nfunc long() {\n" + body(78) + "}\n"},
			"internal/call/y.go: long has 80 lines, want fewer than 80",
		},
		"long file": {
			plant{"internal/call/y.go": "package call\n" + strings.Repeat("\n", 699)},
			"internal/call/y.go: 700 lines, want fewer than 700",
		},
		"tls.Config": {
			plant{"internal/proxy/web/y.go": code(`"crypto/tls"`, "func f(*tls.Config) *tls.Config { return &tls.Config{} }")},
			"internal/proxy/web/y.go: tls.Config is made in internal/mtls only",
		},
		"tls.Config by new": {
			plant{"internal/proxy/web/y.go": code(`x "crypto/tls"`, "var _ = new(x.Config)")},
			"internal/proxy/web/y.go: tls.Config is made in internal/mtls only",
		},
		"tls.Dialer": {
			plant{"internal/fleet/link/y.go": code(`"crypto/tls"`, "var _ tls.Dialer")},
			"internal/fleet/link/y.go: tls.Dialer: TLS is spoken by internal/mtls",
		},
		"tls.Dial": {
			plant{"internal/fleet/link/y.go": code(`"crypto/tls"`, "var _ = tls.Dial")},
			"internal/fleet/link/y.go: tls.Dial: TLS is spoken by internal/mtls",
		},
		"time.Now": {
			plant{"internal/gate/y.go": code(`"time"`, "var _ = time.Now")},
			"internal/gate/y.go: time.Now: time comes from internal/clock",
		},
		"time.Sleep in the command": {
			plant{"cmd/parley/y.go": code(`wall "time"`, "var _ = wall.Sleep")},
			"cmd/parley/y.go: time.Sleep: time comes from internal/clock",
		},
		"os.Getenv": {
			plant{"internal/node/y.go": code(`"os"`, "var _ = os.Getenv")},
			"internal/node/y.go: os.Getenv: only the command reads its environment",
		},
		"os.Exit": {
			plant{"internal/node/y.go": code(`"os"`, "func f() { os.Exit(1) }")},
			"internal/node/y.go: os.Exit: only the command exits",
		},
		"fmt.Println": {
			plant{"internal/node/y.go": code(`"fmt"`, "func f() { fmt.Println() }")},
			"internal/node/y.go: fmt.Println: only the command prints",
		},
		"http.Get in a test": {
			plant{"internal/node/y_test.go": code(`"net/http"`, "var _ = http.Get")},
			"internal/node/y_test.go: http.Get: a client has a transport and a time limit of its own",
		},
		"http.DefaultClient in the command": {
			plant{"cmd/parley/y.go": code(`"net/http"`, "var _ = http.DefaultClient")},
			"cmd/parley/y.go: http.DefaultClient: a client has a transport and a time limit of its own",
		},
		"dot import": {
			plant{"internal/node/y.go": code(`. "os"`, "var _ = Exit")},
			"internal/node/y.go: import of os with a dot",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff([]string{tc.want}, checkLayout(tc.plant.in(base))); diff != "" {
				t.Errorf("complaints (-want +got):\n%s", diff)
			}
		})
	}
}

// TestLayoutAllows plants what looks like a breach and is none.
func TestLayoutAllows(t *testing.T) {
	t.Parallel()
	base := skeleton(t)
	for name, p := range map[string]plant{
		"a function of 79 lines":     {"internal/call/y.go": "package call\n\nfunc f() {\n" + strings.Repeat("\t_ = 0\n", 77) + "}\n"},
		"a method called init":       {"internal/call/y.go": "package call\n\ntype t struct{}\n\nfunc (t) init() {}\n"},
		"a variable called time":     {"internal/gate/y.go": "package gate\n\nimport \"time\"\n\ntype c struct{}\n\nfunc (c) Now() {}\n\nfunc f(time c) { time.Now() }\n\nvar _ time.Time\n"},
		"generated code of any size": {"internal/control/api/y.gen.go": "package api\n\nfunc f() {\n" + strings.Repeat("\t_ = 0\n", 900) + "}\n"},
		"time.Now in a test":         {"internal/gate/y_test.go": "package gate\n\nimport \"time\"\n\nvar _ = time.Now\n"},
		"a pointer to a tls.Config":  {"internal/gate/y.go": "package gate\n\nimport \"crypto/tls\"\n\nfunc f(c *tls.Config) *tls.Config { return c.Clone() }\n"},
		"a module inside the module": {"tools/go.mod": "module tools\n", "tools/x.go": "package x\n\nfunc init() {}\n"},
		"testdata":                   {"internal/gate/testdata/x.go": "package x\n\nfunc init() {}\n"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := checkLayout(p.in(base)); len(got) > 0 {
				t.Errorf("complaints:\n%s", strings.Join(got, "\n"))
			}
		})
	}
}

// skeleton is the house of the real rule files in memory: for each room one file
// with a package comment and the third-party imports that it is there for.
func skeleton(t *testing.T) fstest.MapFS {
	t.Helper()
	h := &house{fsys: os.DirFS(".")}
	h.readLayout()
	h.readThirdParty()
	fsys := fstest.MapFS{}
	for _, name := range []string{"internal/layout.txt", "internal/thirdparty.txt"} {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		fsys[name] = &fstest.MapFile{Data: data}
	}
	for r := range h.rooms {
		var imports strings.Builder
		for _, c := range h.outside {
			if slices.Contains(c.who, r) {
				fmt.Fprintf(&imports, "import _ %q\n", c.path)
			}
		}
		if r == "parley" { // the way by which the SDK could reach what is heavy
			fmt.Fprintf(&imports, "import _ %q\n", module+"/internal/workload/client")
		}
		fsys[path.Join(dirOf(r), "x.go")] = &fstest.MapFile{Data: []byte("// Package x is.\npackage x\n\n" + imports.String())}
	}
	var tests strings.Builder
	for _, c := range h.outside {
		if slices.Contains(c.who, "tests") {
			fmt.Fprintf(&tests, "import _ %q\n", c.path)
		}
	}
	fsys["x_test.go"] = &fstest.MapFile{Data: []byte("package x\n\n" + tests.String())}
	return fsys
}

// dirOf is the folder of a room: room's inverse.
func dirOf(r string) string {
	switch first, _, _ := strings.Cut(r, "/"); first {
	case "parley":
		return "."
	case "cmd", "bench", "interop", "examples", "parleytest":
		return r
	}
	return "internal/" + r
}

func text(t *testing.T, fsys fstest.MapFS, name string) string {
	t.Helper()
	if fsys[name] == nil {
		t.Fatalf("no %s", name)
	}
	return string(fsys[name].Data)
}

// in is a copy of base with the breach.
func (p plant) in(base fstest.MapFS) fstest.MapFS {
	fsys := maps.Clone(base)
	for name, data := range p {
		if more, ok := strings.CutPrefix(data, "+"); ok {
			data = string(base[name].Data) + more
		}
		if fsys[name] = (&fstest.MapFile{Data: []byte(data)}); data == "" {
			delete(fsys, name)
		}
	}
	return fsys
}
