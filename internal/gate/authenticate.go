package gate

import (
	"errors"
	"net/http"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/gate/authn"
	"github.com/parleymesh/parley/internal/jose"
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
	if route.keys {
		if v := c.apiKey(); v.Code != "" {
			return v
		}
	}
	if len(route.issuers) > 0 {
		return c.token(route.issuers)
	}
	return call.Verdict{}
}

// apiKey finds out whose API key came, if one did.
func (c *check) apiKey() call.Verdict {
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
		c.said.keyID, c.said.keyName, err = caller.KeyID, caller.KeyName, keyErr
	}
	return deny(http.StatusUnauthorized, CodeCredentialsInvalid, keyReason(err))
}

// token finds out what the token that came says, if one came. That its issuer's
// keys are not there is no reason to call it bad: a client that threw it away for
// that would ask an issuer for another that has trouble already.
func (c *check) token(issuers []string) call.Verdict {
	token, present := authn.TokenFrom(c.req.Header)
	if !present {
		return call.Verdict{}
	}
	facts, err := c.tokens.Verify(token, issuers, c.now)
	if err == nil {
		c.req.Caller.Token = facts
		return call.Verdict{}
	}
	c.said.token, c.said.message = facts, message(err)
	if errors.Is(err, authn.ErrKeysUnavailable) {
		return deny(http.StatusServiceUnavailable, CodeIssuerUnavailable, ReasonKeysUnavailable)
	}
	v := deny(http.StatusUnauthorized, CodeCredentialsInvalid, tokenReason(err))
	v.Challenge = invalidToken
	return v
}

// byToken are the reasons of a token that was not good.
var byToken = []reasonOf{
	{jose.ErrTokenHeader, ReasonTokenHeader},
	{jose.ErrAlgorithm, ReasonTokenAlgorithm},
	{jose.ErrType, ReasonTokenType},
	{jose.ErrIssuer, ReasonTokenIssuer},
	{jose.ErrNoKey, ReasonTokenKeyUnknown},
	{jose.ErrSignature, ReasonTokenSignature},
	{jose.ErrTokenClaims, ReasonTokenClaims},
	{jose.ErrExpired, ReasonTokenExpired},
	{jose.ErrNotYet, ReasonTokenNotYet},
	{jose.ErrTooOld, ReasonTokenTooOld},
	{jose.ErrBound, ReasonTokenBound},
}

func tokenReason(err error) string {
	for _, t := range byToken {
		if errors.Is(err, t.err) {
			return t.reason
		}
	}
	return ReasonTokenMalformed
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
