package policy_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/policy"
)

func TestCompileRefuses(t *testing.T) {
	t.Parallel()
	web := workload(t, "web")
	good := policy.Rule{ID: "r", Target: "a", From: []identity.ID{web}, Methods: []string{"GET", "M-SEARCH"}, Paths: []string{"/x"}}
	with := func(change func(*policy.Rule)) []policy.Rule {
		r := good
		change(&r)
		return []policy.Rule{good, r}
	}
	require := func(q policy.Requirement) []policy.Rule {
		return with(func(r *policy.Rule) { r.ID, r.Any = "s", []policy.Requirement{q} })
	}
	tests := map[string][]policy.Rule{
		"no id":          with(func(r *policy.Rule) { r.ID = "" }),
		"same id":        with(func(r *policy.Rule) {}),
		"no target":      with(func(r *policy.Rule) { r.ID, r.Target = "s", "elsewhere" }),
		"zero caller":    with(func(r *policy.Rule) { r.ID, r.From = "s", []identity.ID{{}} }),
		"domain caller":  with(func(r *policy.Rule) { r.ID, r.From = "s", []identity.ID{web.TrustDomain().ID()} }),
		"method case":    with(func(r *policy.Rule) { r.ID, r.Methods = "s", []string{"get"} }),
		"method empty":   with(func(r *policy.Rule) { r.ID, r.Methods = "s", []string{""} }),
		"pattern":        with(func(r *policy.Rule) { r.ID, r.Paths = "s", []string{"x"} }),
		"kind":           require(policy.Requirement{Kind: "JWT"}),
		"no issuer":      require(policy.Requirement{Kind: policy.JWT, Audience: "a"}),
		"no audience":    require(policy.Requirement{Kind: policy.JWT, Issuer: "i"}),
		"key's audience": require(policy.Requirement{Kind: policy.APIKey, Audience: "a"}),
		"public issuer":  require(policy.Requirement{Kind: policy.Public, Issuer: "i"}),
		"no kind":        require(policy.Requirement{}),
		"public scopes":  require(policy.Requirement{Kind: policy.Public, Scopes: []string{"r"}}),
		"an empty scope": require(policy.Requirement{Kind: policy.APIKey, Scopes: []string{""}}),
	}
	for name, rules := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if s, err := policy.Compile(1, []string{"a"}, rules); !errors.Is(err, policy.ErrRule) || s != nil {
				t.Errorf("%v, %v", s, err)
			}
		})
	}
	if _, err := policy.Compile(1, []string{""}, nil); !errors.Is(err, policy.ErrRule) {
		t.Errorf("target without a name: %v", err)
	}
	if _, err := policy.Compile(1, []string{"a", "b"}, []policy.Rule{good, {ID: "r", Target: "b"}}); err != nil {
		t.Errorf("one id for two targets: %v", err)
	}
}

func TestNilSetDenies(t *testing.T) {
	t.Parallel()
	var s *policy.Set
	if d := s.Decide(policy.Query{Target: "a"}); d.Allow || d.Reason != policy.UnknownTarget {
		t.Errorf("%+v", d)
	}
	if e := s.Explain(policy.Query{}); e.Decision.Allow || e.Nearest != -1 || s.Revision() != 0 {
		t.Errorf("%+v", e)
	}
}

// TestNearestForStrangers holds the one thing that Explain knows and Decide does
// not: which rule would let another caller make the same call.
func TestNearestForStrangers(t *testing.T) {
	t.Parallel()
	orders := []identity.ID{workload(t, "orders")}
	set := compile(t, []string{"p"}, []policy.Rule{
		{ID: "0", Target: "p", From: orders, Methods: []string{"GET"}, Paths: []string{"/ledger"}},
		{ID: "1", Target: "p", From: orders, Methods: []string{"GET"}, Paths: []string{"/charge"}},
		{ID: "2", Target: "p", From: orders, Methods: []string{"POST"}, Paths: []string{"/charge"}},
	})
	q := policy.Query{Target: "p", Method: "POST", Path: "/charge"}
	q.Caller.Workload = workload(t, "web")
	e := set.Explain(q)
	if e.Nearest != 2 || e.Decision.Rule != "" || e.Decision.Reason != policy.CallerNotAllowed {
		t.Errorf("%+v", e)
	}
}

// hundreds is 500 rules in three shapes; the query is allowed by the last rule.
func hundreds(tb testing.TB) map[string]struct {
	set   *policy.Set
	query policy.Query
} {
	const n = 500
	shapes := map[string]struct {
		set   *policy.Set
		query policy.Query
	}{}
	for _, shape := range []string{"targets", "callers", "paths"} {
		var targets []string
		var rules []policy.Rule
		var q policy.Query
		for i := range n {
			target, caller, path := "orders", "web", "/orders/**"
			switch shape {
			case "targets":
				target, caller = fmt.Sprintf("service-%d", i/10), fmt.Sprintf("caller-%d", i%10)
			case "callers":
				caller = fmt.Sprintf("caller-%d", i)
			case "paths":
				path = fmt.Sprintf("/orders/%d/**", i)
			}
			targets = append(targets, target)
			rules = append(rules, policy.Rule{
				ID: fmt.Sprintf("%s.allow[%d]", target, i), Target: target,
				From: []identity.ID{workload(tb, caller)}, Methods: []string{"GET", "POST"}, Paths: []string{path},
			})
			q = policy.Query{Target: target, Method: "POST", Path: fmt.Sprintf("/orders/%d/items", i)}
			q.Caller.Workload = workload(tb, caller)
		}
		set, err := policy.Compile(1, slices.Compact(targets), rules)
		if err != nil {
			tb.Fatal(err)
		}
		shapes[shape] = struct {
			set   *policy.Set
			query policy.Query
		}{set, q}
	}
	return shapes
}

func BenchmarkDecide(b *testing.B) {
	for shape, h := range hundreds(b) {
		denied := h.query
		denied.Method = "DELETE"
		for name, q := range map[string]policy.Query{"allow": h.query, "deny": denied} {
			b.Run(shape+"/"+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					if h.set.Decide(q).Allow != (name == "allow") {
						b.Fatal(name)
					}
				}
			})
		}
	}
}

func TestDecideDoesNotAllocate(t *testing.T) {
	for shape, h := range hundreds(t) {
		stranger, denied, missing := h.query, h.query, h.query
		stranger.Caller = identity.Caller{KeyID: "k1", Scopes: []string{"a", "b"}}
		stranger.Caller.Token = &identity.Token{Issuer: "i", Audiences: []string{"a"}, Scopes: []string{"r"}}
		denied.Method, missing.Target = "DELETE", "elsewhere"
		for _, q := range []policy.Query{h.query, stranger, denied, missing} {
			if n := testing.AllocsPerRun(100, func() { h.set.Decide(q) }); n != 0 {
				t.Errorf("%s: Decide(%+v) allocates %v times", shape, q, n)
			}
		}
	}
}
