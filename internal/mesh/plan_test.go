package mesh_test

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mesh"
	"github.com/parleymesh/parley/internal/policy"
)

// plan prints changes one a line.
func plan(changes []mesh.Change) string {
	var b strings.Builder
	for _, c := range changes {
		fmt.Fprintf(&b, "%s %-12s %-40s %-40s %s\n", c.Op, c.Kind, c.Name, c.Detail, c.Access)
	}
	s := mesh.Summarize(changes)
	fmt.Fprintf(&b, "%d added, %d changed, %d removed; %d wider, %d narrower\n", s.Added, s.Changed, s.Removed, s.Wider, s.Narrower)
	lines := strings.Split(b.String(), "\n")
	for i, l := range lines {
		lines[i] = strings.TrimRight(l, " ")
	}
	return strings.Join(lines, "\n")
}

// TestDiff compares each pair of files NAME.old.yaml and NAME.new.yaml both ways.
func TestDiff(t *testing.T) {
	for _, file := range files(t, "testdata/diff/*.old.yaml") {
		base := strings.TrimSuffix(file, ".old.yaml")
		t.Run(filepath.Base(base), func(t *testing.T) {
			old, new := parse(t, string(read(t, file))), parse(t, string(read(t, base+".new.yaml")))
			golden(t, base+".golden", plan(mesh.Diff(old, new))+"\nand back\n"+plan(mesh.Diff(new, old)))
			for _, f := range []*mesh.File{old, new} {
				if same := mesh.Diff(f, f); len(same) != 0 {
					t.Errorf("a file differs from itself: %v", same)
				}
			}
		})
	}
}

func TestFindings(t *testing.T) {
	for _, file := range files(t, "testdata/findings/*.yaml") {
		t.Run(filepath.Base(file), func(t *testing.T) {
			var b strings.Builder
			for _, x := range mesh.Findings(parse(t, string(read(t, file))), day) {
				fmt.Fprintf(&b, "%s:%d %s: %s\n", x.File, x.Line, x.Kind, x.Message)
				if x.Hint != "" {
					fmt.Fprintf(&b, "    %s\n", x.Hint)
				}
			}
			golden(t, strings.TrimSuffix(file, ".yaml")+".golden", b.String())
		})
	}
}

const shop = `trust_domain: shop.example
services:
  web:
    runs_as: {user: web}
  billing:
    runs_as: {user: billing}
  payments:
    runs_as: {user: payments}
    inbound: {listen: ":9443", app: 127.0.0.1:8080}
    allow:
      - from: [web]
        methods: [GET]
        paths: [/charge, /charges/**]
      - from: [web, billing]
        methods: [POST]
        paths: [/refund]
  orders:
    runs_as: {user: orders}
    inbound: {listen: ":9444", app: 127.0.0.1:8081}
  db:
    runs_as: {user: db}
    inbound: {listen: ":9445", app: 127.0.0.1:8082, protocol: tcp}
    allow: []
  cache: {runs_as: {user: cache}, inbound: {listen: ":9446", app: 127.0.0.1:8083}}
  flow:
    runs_as: {user: flow}
    inbound: {listen: ":9447", app: 127.0.0.1:8084}
    allow: [{from: [web], methods: [GET], paths: [/a]}]
  mixed:
    runs_as: {user: mixed}
    inbound: {listen: ":9448", app: 127.0.0.1:8085}
    allow:
    -   {from: [web], methods: [GET], paths: [/a]}
gateway:
  edge:
    listen: ":443"
    tls: {mesh_ca: {hosts: [shop.example]}}
    routes:
      - {match: {path: /orders}, to: orders, require: {any: [{api_key: {}}]}}
`

func query(t testing.TB, from, to, method, path string) policy.Query {
	t.Helper()
	td, err := identity.ParseTrustDomain("shop.example")
	if err != nil {
		t.Fatal(err)
	}
	id, err := identity.NewID(td, "/"+from)
	if err != nil {
		t.Fatal(err)
	}
	return policy.Query{Target: to, Caller: identity.Caller{Workload: id}, Method: method, Path: path}
}

// TestSuggest also does what is suggested, and asks policy again.
func TestSuggest(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		from, to, method, path string
		want                   string
	}{
		"allowed":     {"web", "payments", "GET", "/charge", ""},
		"method":      {"web", "payments", "POST", "/charge", "# parley.yaml:10, under allow of payments\n      - from: [web]\n        methods: [POST]\n        paths: [/charge]\n"},
		"path":        {"web", "payments", "GET", "/rates", "# parley.yaml:13, in services.payments.allow[0] write\n        paths: [/charge, /charges/**, /rates]\n"},
		"both":        {"web", "payments", "PUT", "/x", "# parley.yaml:10, under allow of payments\n      - from: [web]\n        methods: [PUT]\n        paths: [/x]\n"},
		"shared_rule": {"billing", "payments", "DELETE", "/refund", "# parley.yaml:10, under allow of payments\n      - from: [billing]\n        methods: [DELETE]\n        paths: [/refund]\n"},
		"no_allow":    {"web", "orders", "GET", "/a,b=1", "# parley.yaml:17, under orders\n    allow:\n      - from: [web]\n        methods: [GET]\n        paths: [\"/a,b=1\"]\n"},
		"tcp":         {"web", "db", "", "", "# parley.yaml:23, in the list allow of db\n{from: [web]}\n"},
		"flow":        {"web", "cache", "GET", "/a", "# parley.yaml:24, in cache\nallow: [{from: [web], methods: [GET], paths: [/a]}]\n"},
		"flow_list":   {"billing", "flow", "GET", "/a", "# parley.yaml:28, in the list allow of flow\n{from: [billing], methods: [GET], paths: [/a]}\n"},
		"flow_rule":   {"web", "flow", "POST", "/a", "# parley.yaml:28, in services.flow.allow[0] write\nmethods: [GET, POST]\n"},
		"mixed":       {"billing", "mixed", "GET", "/a", "# parley.yaml:32, under allow of mixed\n    - from: [billing]\n      methods: [GET]\n      paths: [/a]\n"},
		"gateway":     {"gateway/edge", "orders", "GET", "/all", "# parley.yaml:17, under orders\n    allow:\n      - from: [gateway/edge]\n        methods: [GET]\n        paths: [/all]\n"},
		"no_path":     {"billing", "payments", "GET", "", "# parley.yaml:10, under allow of payments\n      - from: [billing]\n        methods: [GET]\n"},
		"stranger":    {"nobody", "payments", "GET", "/", ""},
		"no_inbound":  {"web", "billing", "GET", "/", ""},
		"unknown":     {"web", "paymnts", "GET", "/", ""},
		"edge":        {"web", "edge/routes[0]", "GET", "/orders", ""},
		"pattern":     {"web", "orders", "GET", "/a/**", ""},
		"tcp_method":  {"web", "db", "GET", "/", ""},
	}
	f := parse(t, shop)
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			q := query(t, tt.from, tt.to, tt.method, tt.path)
			got := mesh.Suggest(f, q)
			if got != tt.want {
				t.Fatalf("got\n%s\nwant\n%s", got, tt.want)
			}
			if got == "" {
				return
			}
			before, after := policyOf(t, compile(t, f)), policyOf(t, compile(t, parse(t, follow(t, shop, got))))
			if before.Decide(q).Allow || !after.Decide(q).Allow {
				t.Errorf("before %+v, after %+v", before.Decide(q), after.Decide(q))
			}
			other := query(t, "gateway/edge", tt.to, tt.method, tt.path)
			if tt.from != "gateway/edge" && before.Decide(other).Allow != after.Decide(other).Allow {
				t.Error("another caller's access changed")
			}
		})
	}
}

// TestSuggestRoute does what is suggested, and asks which requests have a route.
func TestSuggestRoute(t *testing.T) {
	t.Parallel()
	const block = `trust_domain: shop.example
services:
  aa: {runs_as: {user: a}, inbound: {listen: ":9443", app: 127.0.0.1:8080}}
  bb: {runs_as: {user: b}, inbound: {listen: ":9444", app: 127.0.0.1:8081}}
gateway:
  edge:
    listen: ":443"
    tls: {mesh_ca: {hosts: [shop.example]}}
    routes:
      - match: {host: shop.example, path: /aa/**, methods: [GET]}
        to: aa
        require: {any: [{api_key: {scopes: [x, y]}}, {api_key: {}}]}
      - match: {host: shop.example, path: /bb/**}
        to: bb
        require: public
`
	flow := strings.Replace(block, block[strings.Index(block, "    routes:"):],
		"    routes: [{match: {host: shop.example, path: /aa/**, methods: [GET]}, to: aa, require: {any: [{api_key: {}}]}}, {match: {path: /bb/**}, to: bb, require: public}]\n", 1)
	for _, text := range []string{block, flow} {
		f := parse(t, text)
		for _, tt := range []struct{ host, method, path, to, require string }{
			{"shop.example", "POST", "/aa/7", "aa", "api_key"},
			{"shop.example", "GET", "/aax", "aa", "api_key"},
			{"shop.example", "GET", "/b", "bb", "public"},
			{"other.example", "GET", "/aa/7", "aa", "api_key"},
			{"shop.example", "GET", "/aa/7", "", ""},
			{"shop.example", "PUT", "/bb/x/y", "", ""},
			{"*.example", "GET", "/c", "", ""},
			{"[::1]", "GET", "/c", "", ""},
			{"shop.example", "GET", "/c/*", "", ""},
			{"shop.example", "GET", "/c%3A", "", ""},
		} {
			got := mesh.SuggestRoute(f, "edge", tt.host, tt.method, tt.path)
			if tt.to == "" || text == flow && tt.host == "other.example" {
				if tt.to == "" && got != "" {
					t.Errorf("%+v: %s", tt, got)
				}
				continue
			}
			var changed string
			if lines := strings.Split(text, "\n"); text == flow {
				changed = follow(t, text, got)
			} else {
				_, line, _ := strings.Cut(got, "\n")
				changed = strings.Join(lines[:len(lines)-1], "\n") + "\n" + line
			}
			routes := parse(t, changed).Gateways["edge"].Routes
			r := routes[len(routes)-1]
			if len(routes) != 3 || r.To != tt.to || !strings.Contains(r.Require.String(), map[string]string{"api_key": "API key", "public": "public"}[tt.require]) ||
				r.String() != tt.method+" "+tt.host+tt.path {
				t.Errorf("%+v: %s gives %s to %s for %s", tt, got, r, r.To, r.Require)
			}
		}
	}
	if got := mesh.SuggestRoute(parse(t, block), "none", "shop.example", "GET", "/c"); got != "" {
		t.Errorf("of no gateway: %s", got)
	}
}

func TestWantedScopes(t *testing.T) {
	t.Parallel()
	f := parse(t, `trust_domain: shop.example
services:
  aa: {runs_as: {user: a}, inbound: {listen: ":9443", app: 127.0.0.1:8080}}
gateway:
  edge:
    listen: ":443"
    tls: {mesh_ca: {hosts: [shop.example]}}
    routes:
      - {match: {path: /a}, to: aa, require: {any: [{api_key: {scopes: [x, y]}}, {api_key: {scopes: [z]}}]}}
      - {match: {path: /b}, to: aa, require: {any: [{api_key: {}}]}}
      - {match: {path: /c}, to: aa, require: public}
`)
	for _, tt := range []struct {
		target, have, want string
		ok                 bool
	}{
		{"edge/routes[0]", "", "z", true},
		{"edge/routes[0]", "x", "x y", true},
		{"edge/routes[0]", "x z", "z", true},
		{"edge/routes[1]", "x", "", true},
		{"edge/routes[2]", "x", "", false},
		{"edge/routes[3]", "x", "", false},
		{"edge/routes[-1]", "x", "", false},
		{"edge/routes[]", "x", "", false},
		{"aa", "x", "", false},
	} {
		got, ok := mesh.WantedScopes(f, tt.target, strings.Fields(tt.have))
		if strings.Join(got, " ") != tt.want || ok != tt.ok {
			t.Errorf("%s with %q wants %q, %t", tt.target, tt.have, got, ok)
		}
	}
}

func TestSuggestRunsAs(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct{ runsAs, user, exe, want string }{
		"user":      {"{user: web}", "1001", "/bin/x", "runs_as: {user: 1001}"},
		"same":      {"{user: 1001}", "1001", "/bin/x", ""},
		"exe":       {"{exe: /bin/web}", "1001", "/bin/x y", `runs_as: {exe: "/bin/x y"}`},
		"both":      {"{user: web, exe: /bin/web}", "0", "/bin/web", "runs_as: {user: 0, exe: /bin/web}"},
		"exe blind": {"{exe: /bin/web}", "1001", "", ""},
		"user lost": {"{user: web}", "", "/bin/x", ""},
		"unit":      {"{user: web, systemd: web.service}", "1001", "/bin/x", ""},
		"digest":    {"{sha256: " + strings.Repeat("a", 64) + "}", "1001", "/bin/x", ""},
	} {
		text := "trust_domain: shop.example\nservices:\n  aa:\n    runs_as: " + tt.runsAs + "\n"
		got := mesh.SuggestRunsAs(parse(t, text), "aa", tt.user, tt.exe)
		_, line, _ := strings.Cut(got, "\n")
		if strings.TrimSpace(line) != tt.want {
			t.Errorf("%s: %q", name, got)
			continue
		}
		if got == "" {
			continue
		}
		if r := parse(t, strings.Replace(text, "    runs_as: "+tt.runsAs+"\n", line, 1)).Services["aa"].RunsAs; r.User != "" && r.User != tt.user || r.Exe != "" && r.Exe != tt.exe {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// TestSuggestAllowsThisCallAlone does what is suggested for each call that some
// meshes refuse, and asks policy again about every call.
func TestSuggestAllowsThisCallAlone(t *testing.T) {
	t.Parallel()
	methods, paths := []string{"GET", "POST", "DELETE"}, []string{"/", "/a", "/a/", "/a/b", "/b", "/b/c/d"}
	lists := func(r *rand.Rand, from []string) string {
		var some []string
		for _, x := range from {
			if r.IntN(3) == 0 {
				some = append(some, x)
			}
		}
		if len(some) == 0 {
			some = from[:1]
		}
		return "[" + strings.Join(some, ", ") + "]"
	}
	for seed := range uint64(40) {
		r := rand.New(rand.NewPCG(seed, 1))
		text := "trust_domain: shop.example\nservices:\n  aa: {runs_as: {user: a}}\n  bb: {runs_as: {user: b}}\n" +
			"  cc:\n    runs_as: {user: c}\n    inbound: {listen: \":9443\", app: 127.0.0.1:8080}\n    allow:\n"
		for range 1 + r.IntN(3) {
			text += "      - from: " + lists(r, []string{"aa", "bb"}) + "\n"
			if r.IntN(4) > 0 {
				text += "        methods: " + lists(r, methods) + "\n"
			}
			if r.IntN(4) > 0 {
				text += "        paths: " + lists(r, []string{"/a", "/a/*", "/a/**", "/b", "/*", "/**"}) + "\n"
			}
		}
		f := parse(t, text)
		before := policyOf(t, compile(t, f))
		for _, m := range methods {
			for _, p := range paths {
				q := query(t, "aa", "cc", m, p)
				got := mesh.Suggest(f, q)
				if (got == "") != before.Decide(q).Allow {
					t.Fatalf("%s\n%s %s: suggested %q", text, m, p, got)
				}
				if got == "" {
					continue
				}
				changed := follow(t, text, got)
				after := policyOf(t, compile(t, parse(t, changed)))
				for _, from := range []string{"aa", "bb"} {
					for _, m2 := range methods {
						for _, p2 := range append(paths, "/a/x", "/x/y") {
							other := query(t, from, "cc", m2, p2)
							want := before.Decide(other).Allow || from == "aa" && m2 == m && p2 == p
							if after.Decide(other).Allow != want {
								t.Fatalf("%s %s for aa became\n%s\nin which %s may %s %s: %t", m, p, changed, from, m2, p2, !want)
							}
						}
					}
				}
			}
		}
	}
}

var place = regexp.MustCompile(`^# parley\.yaml:(\d+), (under|in the list|in \S+ write|in)`)

// follow does what a suggestion says.
func follow(t *testing.T, text, suggestion string) string {
	t.Helper()
	comment, change, _ := strings.Cut(suggestion, "\n")
	m := place.FindStringSubmatch(comment)
	if m == nil {
		t.Fatalf("no place in %q", comment)
	}
	number, err := strconv.Atoi(m[1])
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(text, "\n")
	line := &lines[number-1]
	switch {
	case m[2] == "under":
		*line += "\n" + strings.TrimSuffix(change, "\n")
	case m[2] == "in the list":
		i := strings.LastIndexByte(*line, ']')
		rest := (*line)[:i]
		if !strings.HasSuffix(rest, "[") {
			rest += ", "
		}
		*line = rest + strings.TrimSpace(change) + (*line)[i:]
	case m[2] == "in":
		i := strings.LastIndexByte(*line, '}')
		*line = (*line)[:i] + ", " + strings.TrimSpace(change) + (*line)[i:]
	default:
		key, _, _ := strings.Cut(strings.TrimSpace(change), ":")
		*line = regexp.MustCompile(key+`: \[[^]]*\]`).ReplaceAllLiteralString(*line, strings.TrimSpace(change))
	}
	return strings.Join(lines, "\n")
}

func TestCoversPatternAgreesWithMatchPath(t *testing.T) {
	t.Parallel()
	var patterns, paths []string
	for _, a := range []string{"/", "/a", "/b", "/*", "/**"} {
		patterns = append(patterns, a)
		for _, b := range []string{"/", "/a", "/*", "/**"} {
			if a != "/" && a != "/**" {
				patterns = append(patterns, a+b)
			}
		}
	}
	for _, a := range []string{"", "/", "/a", "/b", "/c", "//"} {
		for _, b := range []string{"", "/", "/a", "/z", "/a/", "/a/b"} {
			paths = append(paths, a+b)
		}
	}
	for _, wide := range patterns {
		for _, narrow := range patterns {
			want := true
			for _, p := range paths {
				if policy.MatchPath(narrow, p) && !policy.MatchPath(wide, p) {
					want = false
				}
			}
			if got := mesh.CoversPattern(wide, narrow); got != want {
				t.Errorf("%s covers %s: %v, want %v", wide, narrow, got, want)
			}
		}
	}
}
