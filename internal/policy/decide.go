package policy

import (
	"slices"
	"strings"

	"github.com/parleymesh/parley/internal/identity"
)

// This is the file in which a denied request's reason is made. Whatever gate,
// the log or `parley why` say about a rule that did not hold, Decide said first:
// judge finds how near one rule came, Decide reports the nearest.

// A nearness is how far a query got in one rule, the nearest last.
type nearness uint8

const (
	otherCaller    nearness = iota // the rule is not about this caller
	noCredential                   // it wants a credential, none came
	missesAudience                 // the token is its issuer's, and for somebody else
	missesScope                    // the credential lacks a scope
	missesPath                     // the caller is right, the path is not
	missesMethod                   // caller and path are right, the method is not
	holds                          // the rule allows
	nearnessCount
)

// reasons are what each nearness is called outside.
var reasons = [nearnessCount]Reason{
	otherCaller:    CallerNotAllowed,
	noCredential:   NoCredential,
	missesAudience: WrongAudience,
	missesScope:    ScopeMissing,
	missesPath:     PathNotAllowed,
	missesMethod:   MethodNotAllowed,
	holds:          Allowed,
}

// Decide answers q. The first rule, in the order of the revision, that holds
// allows; without one the answer is no, for the reason of the rule that came
// nearest, the first of equals. A rule that does not concern the caller at all
// is not near: Decision.Rule is then empty, and Explain names the closest.
//
// q.Path must be the canonical path that will be forwarded. Decide does not
// allocate, and costs what the rules that name the caller cost, whatever the
// number of others.
func (s *Set) Decide(q Query) Decision {
	if s == nil {
		return Decision{Reason: UnknownTarget}
	}
	d := Decision{Reason: UnknownTarget, Revision: s.revision}
	t := s.targets[q.Target]
	if t == nil {
		return d
	}
	if len(t.rules) == 0 {
		d.Reason = NoRules
		return d
	}
	candidates, named := t.callers[q.Caller.Workload]
	if !named {
		candidates = t.others
	}
	best := otherCaller
	for i := range candidates {
		c := &candidates[i]
		n := missesPath
		if !c.named || strings.HasPrefix(q.Path, c.stem) {
			n = c.rule.judge(&q, c.named)
		}
		if n > best {
			best, d.Rule = n, c.rule.ID
		}
		if n == holds {
			break
		}
	}
	d.Allow, d.Reason = best == holds, reasons[best]
	return d
}

// judge says how near q comes to r; named says that r names q's workload.
func (r *Rule) judge(q *Query, named bool) nearness {
	if !named {
		if n := r.credential(q); n != holds {
			return n
		}
	}
	switch {
	case !r.path(q.Path):
		return missesPath
	case len(r.Methods) > 0 && !slices.Contains(r.Methods, q.Method):
		return missesMethod
	}
	return holds
}

// credential says how near q's caller comes to one of r.Any.
func (r *Rule) credential(q *Query) nearness {
	best := otherCaller
	for i := range r.Any {
		best = max(best, r.Any[i].judge(q))
	}
	return best
}

func (want *Requirement) judge(q *Query) nearness {
	switch want.Kind {
	case Public:
		return holds
	case APIKey:
		return want.judgeKey(&q.Caller)
	case JWT:
		return want.judgeToken(q.Caller.Token)
	}
	return noCredential
}

func (want *Requirement) judgeKey(c *identity.Caller) nearness {
	switch {
	case c.KeyID == "":
		return noCredential
	case !c.HasScopes(want.Scopes):
		return missesScope
	}
	return holds
}

// judgeToken looks at one token by itself: its scopes are worth something only
// together with its issuer and its audience.
func (want *Requirement) judgeToken(t *identity.Token) nearness {
	switch {
	case t == nil, t.Issuer != want.Issuer:
		return noCredential
	case !slices.Contains(t.Audiences, want.Audience):
		return missesAudience
	case !t.HasScopes(want.Scopes):
		return missesScope
	}
	return holds
}

func (r *Rule) path(path string) bool {
	if len(r.Paths) == 0 {
		return true
	}
	for _, p := range r.Paths {
		if MatchPath(p, path) {
			return true
		}
	}
	return false
}
