package gate

import (
	"errors"
	"net/http"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/gate/authn"
)

// authenticate is the stage of an edge: the caller is whom the presented
// credential stands for, nobody where none was presented. The route says which
// credentials count; one that counts and is not good is refused even where the
// route would let nobody in, since its sender believes to be somebody.
func (c *check) authenticate() call.Verdict {
	if c.req.Target == "" || c.req.PolicyTarget == "" {
		return deny(http.StatusNotFound, CodeRouteNotFound, ReasonRouteNotFound)
	}
	route, ok := c.routes[c.req.PolicyTarget]
	if !ok || route.to != c.req.Target {
		return deny(http.StatusServiceUnavailable, CodeNotReady, ReasonRouteChanged)
	}
	if !route.keys {
		return call.Verdict{}
	}
	key, present, err := authn.FromHeaders(c.req.Header)
	if err == nil && !present {
		return call.Verdict{}
	}
	if err == nil {
		caller, keyErr := c.keys.Lookup(key, c.now)
		if keyErr == nil {
			c.req.Caller = caller
			return call.Verdict{}
		}
		c.named, err = caller, keyErr
	}
	return deny(http.StatusUnauthorized, CodeCredentialsInvalid, keyReason(err))
}

// keyReason is why a credential was not good, for the record.
func keyReason(err error) string {
	switch {
	case errors.Is(err, authn.ErrSeveral):
		return ReasonKeySeveral
	case errors.Is(err, authn.ErrKeyExpired):
		return ReasonKeyExpired
	case errors.Is(err, authn.ErrKeyUnknown):
		return ReasonKeyUnknown
	}
	return ReasonKeyMalformed
}
