package gate

import (
	"net/http"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/policy"
)

// authorise is the last stage: policy's answer as a verdict. A denied client
// learns whether a credential would help and nothing else.
func (c *check) authorise() call.Verdict {
	q := policy.Query{Target: c.req.PolicyTarget, Caller: c.req.Caller}
	if c.req.Protocol != call.TCP {
		q.Method, q.Path = c.req.Method, c.req.Path
	}
	d := c.policy.Decide(q)
	v := call.Verdict{Allow: d.Allow, Rule: d.Rule, Reason: string(d.Reason)}
	switch {
	case d.Allow:
	case d.Reason == policy.NoCredential:
		v.Status, v.Code, v.Challenge = http.StatusUnauthorized, CodeCredentialsRequired, challenge
	case d.Reason == policy.WrongAudience:
		v.Status, v.Code, v.Challenge = http.StatusUnauthorized, CodeCredentialsInvalid, invalidToken
	case d.Reason == policy.ScopeMissing && c.req.Caller.Token != nil:
		v.Status, v.Code, v.Challenge = http.StatusForbidden, CodeNotAllowed, insufficientScope
	default:
		v.Status, v.Code = http.StatusForbidden, CodeNotAllowed
	}
	return v
}
