package policy_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/policy"
)

// world makes random rules and queries from few words, so that they often meet.
type world struct {
	*rand.Rand
	ids     []identity.ID
	targets []string
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{Rand: rand.New(rand.NewPCG(seed, 1)), targets: []string{"a", "b", "edge/routes[0]"}}
	for _, name := range []string{"web", "orders", "billing", "gateway/edge"} {
		w.ids = append(w.ids, workload(t, name))
	}
	return w
}

func pick[T any](w *world, from []T) T { return from[w.IntN(len(from))] }

// some is up to n picks, often none.
func some[T any](w *world, n int, from []T) (picked []T) {
	for range w.IntN(n + 1) {
		picked = append(picked, pick(w, from))
	}
	return picked
}

func (w *world) rule(n int) policy.Rule {
	r := policy.Rule{
		ID: fmt.Sprintf("rule[%d]", n), Target: pick(w, w.targets),
		From:    some(w, 2, w.ids),
		Methods: some(w, 2, []string{"GET", "POST", "PUT"}),
		Paths:   some(w, 2, []string{"/", "/x", "/x/*", "/x/**", "/*/y", "/**"}),
	}
	for range w.IntN(3) {
		q := policy.Requirement{Kind: policy.APIKey, Scopes: some(w, 2, []string{"r", "w"})}
		switch w.IntN(6) {
		case 0:
			q = policy.Requirement{Kind: policy.Public}
		case 1, 2:
			q = policy.Requirement{Kind: policy.JWT, Issuer: pick(w, []string{"i", "j"}), Audience: pick(w, []string{"a", "b"}), Scopes: q.Scopes}
		}
		r.Any = append(r.Any, q)
	}
	return r
}

func (w *world) query() policy.Query {
	q := policy.Query{
		Target: pick(w, append(w.targets, "elsewhere")),
		Method: pick(w, []string{"GET", "POST", "PUT", "DELETE", ""}),
		Path:   pick(w, []string{"/", "/x", "/x/", "/x/y", "/x/y/z", "/z/y", "*", ""}),
	}
	if w.IntN(3) > 0 {
		q.Caller.Workload = pick(w, append(w.ids, identity.ID{}))
	}
	if w.IntN(2) > 0 {
		q.Caller.KeyID, q.Caller.Scopes = "k1", some(w, 2, []string{"r", "w", "z"})
	}
	if w.IntN(2) > 0 {
		q.Caller.Token = &identity.Token{
			Issuer: pick(w, []string{"i", "j", "k"}), Audiences: some(w, 2, []string{"a", "b", "c"}), Scopes: some(w, 2, []string{"r", "w", "z"}),
		}
	}
	return q
}

func (w *world) rules(n int) (rules []policy.Rule) {
	for i := range n {
		rules = append(rules, w.rule(i))
	}
	return rules
}

func compile(t *testing.T, targets []string, rules []policy.Rule) *policy.Set {
	t.Helper()
	s, err := policy.Compile(revision, targets, rules)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// allows is what a rule means, without index and reasons.
func allows(r policy.Rule, q policy.Query) bool {
	caller := !q.Caller.Workload.IsZero() && slices.Contains(r.From, q.Caller.Workload) ||
		slices.ContainsFunc(r.Any, func(a policy.Requirement) bool {
			token := q.Caller.Token
			switch a.Kind {
			case policy.Public:
				return true
			case policy.APIKey:
				return q.Caller.KeyID != "" && q.Caller.HasScopes(a.Scopes)
			}
			return token != nil && token.Issuer == a.Issuer && slices.Contains(token.Audiences, a.Audience) && token.HasScopes(a.Scopes)
		})
	method := len(r.Methods) == 0 || slices.Contains(r.Methods, q.Method)
	path := len(r.Paths) == 0 || slices.ContainsFunc(r.Paths, func(p string) bool { return reference(p, q.Path) })
	return r.Target == q.Target && caller && method && path
}

// TestDecideIsTheFirstRuleThatAllows compares the index with a search of all
// rules: allow if and only if one allows, and then by the first.
func TestDecideIsTheFirstRuleThatAllows(t *testing.T) {
	t.Parallel()
	allowed := 0
	for seed := range uint64(400) {
		w := newWorld(t, seed)
		rules := w.rules(w.IntN(12))
		set := compile(t, w.targets, rules)
		for range 50 {
			q := w.query()
			d := set.Decide(q)
			first := slices.IndexFunc(rules, func(r policy.Rule) bool { return allows(r, q) })
			switch {
			case d.Allow != (first >= 0), d.Allow != (d.Reason == policy.Allowed):
				t.Fatalf("seed %d: %+v decided %+v", seed, q, d)
			case d.Allow && d.Rule != rules[first].ID:
				t.Fatalf("seed %d: %+v allowed by %s, not %s", seed, q, d.Rule, rules[first].ID)
			case d.Revision != revision || d.Reason == "":
				t.Fatalf("seed %d: %+v", seed, d)
			}
			if d.Allow {
				allowed++
			}
		}
	}
	if allowed < 2000 {
		t.Fatalf("only %d queries were allowed: the test compares nothing", allowed)
	}
}

func TestAddedRuleNeverDenies(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		w := newWorld(t, seed)
		rules := w.rules(w.IntN(8))
		before := compile(t, w.targets, rules)
		more := slices.Insert(slices.Clone(rules), w.IntN(len(rules)+1), w.rule(99))
		after := compile(t, w.targets, more)
		for range 60 {
			if q := w.query(); before.Decide(q).Allow && !after.Decide(q).Allow {
				t.Fatalf("seed %d: %+v is denied by adding %+v", seed, q, more)
			}
		}
	}
}

func TestOrderNeverDecides(t *testing.T) {
	t.Parallel()
	for seed := range uint64(200) {
		w := newWorld(t, seed)
		rules := w.rules(8)
		set := compile(t, w.targets, rules)
		w.Shuffle(len(rules), func(i, j int) { rules[i], rules[j] = rules[j], rules[i] })
		shuffled := compile(t, w.targets, rules)
		for range 60 {
			q := w.query()
			if a, b := set.Decide(q), shuffled.Decide(q); a.Allow != b.Allow || a.Reason != b.Reason {
				t.Fatalf("seed %d: %+v: %+v and in another order %+v", seed, q, a, b)
			}
		}
	}
}

func TestEmptyRuleMatchesNobody(t *testing.T) {
	t.Parallel()
	for seed := range uint64(100) {
		w := newWorld(t, seed)
		rules := w.rules(6)
		for i := range rules {
			rules[i].From, rules[i].Any = nil, nil
		}
		set := compile(t, w.targets, rules)
		for range 60 {
			if q := w.query(); set.Decide(q).Allow {
				t.Fatalf("seed %d: %+v is allowed", seed, q)
			}
		}
	}
}

func TestExplainAgreesWithDecide(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		w := newWorld(t, seed)
		rules := w.rules(w.IntN(10))
		set := compile(t, w.targets, rules)
		for range 40 {
			q := w.query()
			d, e := set.Decide(q), set.Explain(q)
			of := slices.DeleteFunc(slices.Clone(rules), func(r policy.Rule) bool { return r.Target != q.Target })
			switch {
			case e.Decision != d, len(e.Rules) != len(of), (e.Nearest < 0) != (len(of) == 0):
				t.Fatalf("seed %d: %+v decided %+v, explained %+v", seed, q, d, e)
			case d.Rule != "" && (e.Rules[e.Nearest].Rule.ID != d.Rule || e.Rules[e.Nearest].Reason != d.Reason):
				t.Fatalf("seed %d: %+v decided %+v, nearest is %+v", seed, q, d, e.Rules[e.Nearest])
			}
			for _, c := range e.Rules {
				if whole := c.Caller && c.Path && c.Method; whole != (c.Reason == policy.Allowed) || whole != allows(c.Rule, q) {
					t.Fatalf("seed %d: %+v considered %+v", seed, q, c)
				}
			}
		}
	}
}
