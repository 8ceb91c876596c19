package gate

import (
	"net/http"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/gate/authn"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/metric"
)

// Values of WWW-Authenticate (RFC 6750 section 3). Of a token they say that it is
// not good, or not good for this, and nothing more: why is not the client's to
// know.
const (
	challenge         = `Bearer realm="parley"`
	invalidToken      = `Bearer realm="parley", error="invalid_token"`
	insufficientScope = `Bearer realm="parley", error="insufficient_scope"`
)

// A check is one request on its way through the stages. Each stage either
// refuses, which ends it, or leaves the verdict to the next.
type check struct {
	*state
	tokens    *authn.Tokens
	origins   *authn.Verifier
	seen      *sources
	plaintext *metric.CounterFamily
	req       *call.Request
	now       time.Time
	said      aside
}

// Check decides, sets r.Caller and r.Verdict, and returns the latter. The path in
// r is the one that will be forwarded. Every Check is owed a Done.
func (g *Gate) Check(r *call.Request) call.Verdict {
	c := check{state: g.state.Load(), tokens: g.tokens, origins: &g.origins, seen: &g.seen, plaintext: g.metrics.plaintext, req: r, now: g.cfg.Clock.Now()}
	r.Caller = identity.Caller{}
	v := c.ready(g.failing.Load() && !c.gaps[r.Local])
	if v.Code == "" {
		if s := c.of(r, c.now); s != nil {
			c.state = s
			v = c.decide()
		} else {
			v = deny(http.StatusServiceUnavailable, CodeNotReady, ReasonRouteChanged)
		}
	}
	v.ID = audit.NewID(c.now)
	v.Revision = c.policy.Revision()
	r.Verdict = v
	g.open.add(v.ID, c.said)
	return v
}

// ready refuses while a decision could not be made, or not be recorded as it must.
func (c *check) ready(unrecorded bool) call.Verdict {
	switch {
	case c.policy == nil:
		return deny(http.StatusServiceUnavailable, CodeNotReady, ReasonNotReady)
	case unrecorded:
		return deny(http.StatusServiceUnavailable, CodeAuditUnavailable, ReasonAuditUnavailable)
	}
	return call.Verdict{}
}

// decide runs the stages of the request's end: who asks, then whether they may.
func (c *check) decide() call.Verdict {
	var v call.Verdict
	switch c.req.End {
	case call.Outbound:
		c.req.Caller.Workload = c.req.LocalID
		return call.Verdict{Allow: true, Reason: ReasonOutbound}
	case call.Inbound:
		if c.req.Plaintext {
			return c.observe()
		}
		v = c.admit()
	case call.Edge:
		v = c.authenticate()
	default:
		return deny(http.StatusForbidden, CodeNotAllowed, ReasonUnknownEnd)
	}
	if v.Code != "" {
		return v
	}
	return c.authorise()
}

// deny is a refusal that no rule made.
func deny(status int, code, reason string) call.Verdict {
	v := call.Verdict{Status: status, Code: code, Reason: reason}
	if status == http.StatusUnauthorized {
		v.Challenge = challenge
	}
	return v
}
