package policy

import "slices"

// An Explanation is a decision with everything that was considered for it.
type Explanation struct {
	Decision Decision
	// Rules are all rules of the target, in the order of the revision.
	Rules []Considered
	// Nearest is the index in Rules of the rule that allowed or else came
	// nearest, -1 where the target has no rules or is unknown. Unlike
	// Decision.Rule it is also set where no rule concerns the caller: it is then
	// the rule that would let another caller make the same call.
	Nearest int
}

// A Considered is one rule and what came of it.
type Considered struct {
	Rule Rule
	// Reason is Allowed, or what in this rule did not hold, looked at in the
	// order caller, path, method.
	Reason Reason
	// Caller, Path and Method say which of the three hold, each by itself.
	Caller bool
	Path   bool
	Method bool
}

// Explain decides q and says how near every rule of the target came. Its
// Decision is always Decide's.
func (s *Set) Explain(q Query) Explanation {
	e := Explanation{Decision: s.Decide(q), Nearest: -1}
	if s == nil || s.targets[q.Target] == nil {
		return e
	}
	best := -1
	for i, r := range s.targets[q.Target].rules {
		named := slices.Contains(r.From, q.Caller.Workload)
		n := r.judge(&q, named)
		c := Considered{
			Rule: *r, Reason: reasons[n],
			Caller: named || r.credential(&q) == holds,
			Path:   r.path(q.Path),
			Method: len(r.Methods) == 0 || slices.Contains(r.Methods, q.Method),
		}
		if score := c.score(n); score > best {
			best, e.Nearest = score, i
		}
		e.Rules = append(e.Rules, c)
	}
	return e
}

// score orders by nearness, as Decide does. Among rules for other callers, which
// Decide does not tell apart, it prefers those that hold otherwise.
func (c *Considered) score(n nearness) int {
	score := int(n) << 2
	if n == otherCaller && c.Path {
		score |= 2
	}
	if n == otherCaller && c.Method {
		score |= 1
	}
	return score
}
