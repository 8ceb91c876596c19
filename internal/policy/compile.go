package policy

import (
	"errors"
	"fmt"
	"slices"

	"github.com/parleymesh/parley/internal/identity"
)

// ErrRule is what every error of Compile wraps.
var ErrRule = errors.New("not a usable rule")

// A Set is the rules of one revision, indexed. It is immutable and safe for
// concurrent use; the nil Set knows no target and so denies everything.
type Set struct {
	revision int64
	targets  map[string]*target
}

// A target is everything that decides about one service or route.
type target struct {
	// rules are all of them, in the order of the revision.
	rules []*Rule
	// callers are, for each identity that some rule names, the rules that may
	// concern it: those that name it and those that ask for a credential, in
	// the order of the revision. others are the same for everybody else.
	callers map[identity.ID][]candidate
	others  []candidate
}

// A candidate is a rule that may concern a caller.
type candidate struct {
	rule *Rule
	// named says that the rule names the caller's workload identity.
	named bool
	// stem is what every path that the rule allows begins with: most rules are
	// passed over by it, without a look at the rule.
	stem string
}

// Compile indexes rules for the named targets. A target without rules is known
// and denies everybody. Every rule must be usable, or all are refused: a rule
// for a target that is not there, a repeated id within a target, a malformed
// pattern, method or requirement. The rules are not to be changed afterwards.
func Compile(revision int64, targets []string, rules []Rule) (*Set, error) {
	s := &Set{revision: revision, targets: make(map[string]*target, len(targets))}
	for _, name := range targets {
		if name == "" {
			return nil, fmt.Errorf("%w: a target without a name", ErrRule)
		}
		s.targets[name] = &target{callers: map[identity.ID][]candidate{}}
	}
	rules = slices.Clone(rules)
	for i := range rules {
		r := &rules[i]
		if err := check(r); err != nil {
			return nil, fmt.Errorf("%w: %q: %w", ErrRule, r.ID, err)
		}
		t := s.targets[r.Target]
		if t == nil {
			return nil, fmt.Errorf("%w: %q: no target %q", ErrRule, r.ID, r.Target)
		}
		t.rules = append(t.rules, r)
	}
	for name, t := range s.targets {
		if err := t.index(); err != nil {
			return nil, fmt.Errorf("%w: target %q: %w", ErrRule, name, err)
		}
	}
	return s, nil
}

// Revision is the revision that the rules are of, 0 for the nil Set.
func (s *Set) Revision() int64 {
	if s == nil {
		return 0
	}
	return s.revision
}

// index fills callers and others from rules.
func (t *target) index() error {
	ids := map[string]bool{}
	for _, r := range t.rules {
		if ids[r.ID] {
			return fmt.Errorf("two rules %q", r.ID)
		}
		ids[r.ID] = true
		for _, id := range r.From {
			t.callers[id] = nil
		}
	}
	for _, r := range t.rules {
		t.add(r)
	}
	return nil
}

// add appends r to the candidates of everybody whom it may concern.
func (t *target) add(r *Rule) {
	start := stem(r.Paths)
	if len(r.Any) > 0 {
		for id := range t.callers {
			if !slices.Contains(r.From, id) {
				t.callers[id] = append(t.callers[id], candidate{r, false, start})
			}
		}
		t.others = append(t.others, candidate{r, false, start})
	}
	for i, id := range r.From {
		if !slices.Contains(r.From[:i], id) {
			t.callers[id] = append(t.callers[id], candidate{r, true, start})
		}
	}
}

// check refuses a rule that could not mean what its author meant.
func check(r *Rule) error {
	if r.ID == "" {
		return errors.New("a rule has an id")
	}
	for _, id := range r.From {
		if id.Path() == "" {
			return errors.New("a rule's caller is a workload identity")
		}
	}
	for _, q := range r.Any {
		switch {
		case q.Kind != APIKey && q.Kind != Public && q.Kind != JWT:
			return fmt.Errorf("unknown kind of credential %q", q.Kind)
		case q.Kind == Public && len(q.Scopes) > 0:
			return errors.New("a public requirement has no scopes")
		case q.Kind == JWT && (q.Issuer == "" || q.Audience == ""):
			return errors.New("a token is of an issuer and for an audience")
		case q.Kind != JWT && (q.Issuer != "" || q.Audience != ""):
			return errors.New("only a token has an issuer and an audience")
		case slices.Contains(q.Scopes, ""):
			return errors.New("a scope is empty")
		}
	}
	for _, m := range r.Methods {
		if !validMethod(m) {
			return fmt.Errorf("%q is not a method in upper case", m)
		}
	}
	for _, p := range r.Paths {
		if err := ValidPattern(p); err != nil {
			return err
		}
	}
	return nil
}

// validMethod holds for the tokens that methods are made of in practice. They are
// compared byte by byte (RFC 9110 section 9.1: methods are case-sensitive), so a
// rule for "get" would hold for nothing.
func validMethod(m string) bool {
	for i := 0; i < len(m); i++ {
		if c := m[i]; (c < 'A' || c > 'Z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return false
		}
	}
	return m != ""
}
