package mesh_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mesh"
	"github.com/parleymesh/parley/internal/policy"
)

const trialsFile = `trust_domain: shop.example
hosts: {a: {}, b: {}, c: {}}
services:
  web: {runs_on: [a], runs_as: {user: web}, calls: [orders, ledger]}
  batch: {runs_on: [a, b], runs_as: {user: batch}}
  orders:
    runs_on: [b]
    runs_as: {user: orders}
    inbound: {listen: ":9443", app: "127.0.0.1:8080", probe: {path: /healthz}}
    allow:
      - {from: [web], methods: [POST, GET], paths: [/orders/*/items, /healthz]}
      - {from: [web, batch], methods: [PUT], paths: [/orders/**]}
  ledger:
    runs_on: [b, c]
    runs_as: {user: ledger}
    inbound: {listen: ":9444", app: "unix:/run/ledger.sock", protocol: tcp}
    allow: [{from: [web]}]
  open:
    runs_on: [c]
    runs_as: {user: open}
    inbound: {listen: ":9445", app: "127.0.0.1:8081", probe: {path: /health, method: HEAD}}
    allow: [{from: [web]}, {from: [batch], methods: [DELETE]}]
  alone:
    runs_on: [c]
    runs_as: {user: alone}
    inbound: {listen: ":9446", app: "127.0.0.1:8082"}
gateway:
  edge:
    runs_on: [a]
    listen: ":443"
    tls: {mesh_ca: {hosts: [shop.example]}}
    routes:
      - {match: {path: /shop/**, methods: [GET]}, to: orders, require: public}
      - {match: {host: api.shop.example}, to: open, require: public}
`

// Each trial says who calls whom from where, and what is tried.
func TestTrials(t *testing.T) {
	t.Parallel()
	request := func(method, path string) *mesh.Probe { return &mesh.Probe{Method: method, Path: path} }
	odd := "/parley-verify/0/1/2"
	tcp, http, app := "tcp", "http", "127.0.0.1:8080"
	want := []mesh.Trial{
		{Caller: "batch", Callee: "open", CallerHosts: []string{"a", "b"}, CalleeHosts: []string{"c"}, Protocol: http, App: "127.0.0.1:8081", Allowed: request("DELETE", "/"), Forbidden: request("GET", odd), Line: 22},
		{Caller: "batch", Callee: "orders", CallerHosts: []string{"a", "b"}, CalleeHosts: []string{"b"}, Protocol: http, App: app, Allowed: request("PUT", "/orders"), Forbidden: request("GET", odd), Line: 12},
		{Caller: "gateway/edge", Callee: "open", CallerHosts: []string{"a"}, CalleeHosts: []string{"c"}, Protocol: http, App: "127.0.0.1:8081", Allowed: request("HEAD", "/health"), Forwarded: true, Sidecar: true, Line: 34},
		{Caller: "gateway/edge", Callee: "orders", CallerHosts: []string{"a"}, CalleeHosts: []string{"b"}, Protocol: http, App: app, Allowed: request("GET", "/shop"), Forbidden: request("GET", odd), Sidecar: true, Line: 33},
		{Caller: "web", Callee: "ledger", CallerHosts: []string{"a"}, CalleeHosts: []string{"b", "c"}, Protocol: tcp, App: "unix:/run/ledger.sock", Sidecar: true, Line: 17},
		{Caller: "web", Callee: "open", CallerHosts: []string{"a"}, CalleeHosts: []string{"c"}, Protocol: http, App: "127.0.0.1:8081", Allowed: request("HEAD", "/health"), Forwarded: true, Line: 22},
		{Caller: "web", Callee: "orders", CallerHosts: []string{"a"}, CalleeHosts: []string{"b"}, Protocol: http, App: app, Allowed: request("GET", "/healthz"), Forbidden: request("GET", odd), Forwarded: true, Sidecar: true, Line: 11},
	}
	if d := cmp.Diff(want, mesh.Trials(parse(t, trialsFile))); d != "" {
		t.Error(d)
	}
}

// An edge that is allowed in two places is one, by what either of them allows.
func TestTrialsOfAnEdgeAllowedTwice(t *testing.T) {
	t.Parallel()
	text := strings.Replace(trialsFile, "allow: [{from: [web]}, {from: [batch], methods: [DELETE]}]",
		"allow: [{from: [gateway/edge], methods: [GET], paths: [/own]}, {from: [web], paths: [/a]}, {from: [web]}]", 1)
	var got []mesh.Trial
	for _, tr := range mesh.Trials(parse(t, text)) {
		if tr.Callee == "open" {
			got = append(got, tr)
		}
	}
	if len(got) != 2 {
		t.Fatalf("got %+v", got)
	}
	if g := got[0]; g.Caller != "gateway/edge" || g.Forbidden != nil || g.Line != 22 {
		t.Errorf("by allow and by route: %+v", g)
	}
	if w := got[1]; w.Caller != "web" || w.Forbidden != nil || !w.Forwarded {
		t.Errorf("by two entries: %+v", w)
	}
}

func TestTrialsOfNothing(t *testing.T) {
	t.Parallel()
	if got := mesh.Trials(parse(t, calls("b, c"))); len(got) != 0 {
		t.Errorf("calls that nobody allows: %+v", got)
	}
}

// checkTrials holds the trials of f against policy, which is what decides at the
// callee: what should be allowed is, what should not is not, and there is nothing to
// try only where nothing is forbidden.
func checkTrials(t *testing.T, f *mesh.File) {
	t.Helper()
	set := policyOf(t, compile(t, f))
	td, err := identity.ParseTrustDomain(f.TrustDomain)
	if err != nil {
		t.Fatal(err)
	}
	edges := map[mesh.Edge]bool{}
	for _, tr := range mesh.Trials(f) {
		id, err := identity.ServiceID(td, tr.Caller)
		if gateway, ok := strings.CutPrefix(tr.Caller, "gateway/"); ok {
			id, err = identity.GatewayID(td, gateway)
		}
		if err != nil {
			t.Fatal(err)
		}
		edge := mesh.Edge{From: tr.Caller, To: tr.Callee}
		if edges[edge] {
			t.Errorf("%v is there twice", edge)
		}
		edges[edge] = true
		allowed := func(method, path string) bool {
			return set.Decide(policy.Query{Target: tr.Callee, Caller: identity.Caller{Workload: id}, Method: method, Path: path}).Allow
		}
		if tr.Line == 0 {
			t.Errorf("%v has no line", edge)
		}
		if tr.Protocol == "tcp" {
			if !allowed("", "") || tr.Allowed != nil || tr.Forbidden != nil {
				t.Errorf("%v: allowed %v, %+v", edge, allowed("", ""), tr)
			}
			continue
		}
		for _, p := range []*mesh.Probe{tr.Allowed, tr.Forbidden} {
			if p != nil && (policy.ValidPath(p.Path) != nil || p.Method == "") {
				t.Errorf("%v: %s is no canonical request", edge, p)
			}
		}
		if tr.Allowed == nil || !allowed(tr.Allowed.Method, tr.Allowed.Path) {
			t.Errorf("%v: %s is not allowed", edge, tr.Allowed)
		}
		if probe := f.Services[tr.Callee].Inbound.Probe; tr.Forwarded != (probe != nil && allowed(probe.Method, probe.Path)) || tr.Forwarded && *tr.Allowed != *probe {
			t.Errorf("%v: forwarded %v, %s of %s", edge, tr.Forwarded, tr.Allowed, probe)
		}
		if tr.Forbidden != nil {
			if allowed(tr.Forbidden.Method, tr.Forbidden.Path) {
				t.Errorf("%v: %s is allowed", edge, tr.Forbidden)
			}
			continue
		}
		for _, method := range []string{"GET", "HEAD", "POST", "DELETE", "BREW"} {
			for _, path := range []string{"/", "/a", "/a/", "/x", "/x/", "/a/b", "/a/x", "/x/y", "/x/y/", "/a/b/c", "/x/y/z", "/x/y/z/0/1/2/3/4"} {
				if !allowed(method, path) {
					t.Errorf("%v: nothing forbidden is tried, and %s %s is", edge, method, path)
				}
			}
		}
	}
}

func TestTrialsAgreeWithPolicy(t *testing.T) {
	t.Parallel()
	for _, file := range files(t, "testdata/good/*.yaml") {
		t.Run(file, func(t *testing.T) { checkTrials(t, parse(t, string(read(t, file)))) })
	}
	methods := []string{"GET", "POST", "DELETE", "HEAD"}
	patterns := []string{"/", "/a", "/a/", "/a/*", "/a/**", "/*", "/*/", "/*/*", "/*/**", "/*/*/**", "/*/*/*/*", "/**", "/a/*/b", "/*/b"}
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 2))
		text := trialsRandom(r, methods, patterns)
		f := parse(t, text)
		if checkTrials(t, f); t.Failed() {
			t.Fatalf("seed %d:\n%s", seed, text)
		}
	}
}

// trialsRandom is a mesh in which aa and edge call cc by some entries.
func trialsRandom(r *rand.Rand, methods, patterns []string) string {
	some := func(key string, from []string) string {
		var picked []string
		for range 1 + r.IntN(3) {
			if x := from[r.IntN(len(from))]; !strings.Contains(strings.Join(picked, " "), x) {
				picked = append(picked, `"`+x+`"`)
			}
		}
		if r.IntN(2) == 0 {
			return ""
		}
		return fmt.Sprintf(", %s: [%s]", key, strings.Join(picked, ", "))
	}
	var probe, routes string
	if r.IntN(2) == 0 {
		probe = ", probe: {path: " + []string{"/", "/a", "/a/b", "/x/y/z"}[r.IntN(4)] + "}"
	}
	text := "trust_domain: shop.example\nservices:\n  aa: {runs_as: {user: a}}\n" +
		"  cc:\n    runs_as: {user: c}\n    inbound: {listen: \":9443\", app: 127.0.0.1:8080" + probe + "}\n    allow:\n"
	for range 1 + r.IntN(4) {
		text += "      - {from: [aa]" + some("methods", methods) + some("paths", patterns) + "}\n"
	}
	for i := range 1 + r.IntN(2) {
		routes += fmt.Sprintf("      - {match: {host: h%d.example, path: %q}, to: cc, require: public}\n", i, patterns[r.IntN(len(patterns))])
	}
	return text + "gateway:\n  edge:\n    listen: \":443\"\n    tls: {mesh_ca: {hosts: [shop.example]}}\n    routes:\n" + routes
}
