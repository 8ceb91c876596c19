package authn

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
)

// ErrKeysUnavailable says that a token cannot be judged, since its issuer's keys
// are not there. It says nothing about the token.
var ErrKeysUnavailable = errors.New("the keys of the token's issuer are not available")

// Issuers are whose tokens can be verified; package fetch has some. They are safe
// for concurrent use.
type Issuers interface {
	// Issuer is the issuer of that URL with its present keys, without waiting. The
	// same keys and rules are the same pointer.
	Issuer(url string) (*jose.Issuer, error)
	// Newer is the same after a load of the keys that than, which may be nil, does
	// not have; it waits for it, for a bounded time.
	Newer(url string, than *jose.Issuer) (*jose.Issuer, error)
}

// Tokens verify access tokens, and remember those that were good. They are safe
// for concurrent use.
type Tokens struct {
	issuers Issuers
	cache   cache[tokenHash, seen]
}

// NewTokens verify by the keys of issuers.
func NewTokens(issuers Issuers) *Tokens { return &Tokens{issuers: issuers} }

// TokenFrom takes a token out of a request: what stands after Bearer in its one
// Authorization field (RFC 6750 section 2.1) and is no API key. It is not looked
// for anywhere else; a token in a query ends in logs (RFC 9700 section 4.3.2).
func TokenFrom(h call.Header) (token string, present bool) {
	if h == nil {
		return "", false
	}
	values := h.Values(authorizationField)
	if len(values) != 1 {
		return "", false // several were refused with the header's form
	}
	token, ok := bearer(values[0])
	if !ok || isKey(token) {
		return "", false
	}
	return token, true
}

// Verify says what a token says, if it is one of the accepted issuers' and in time
// at now. Audience and scopes are policy's to judge. The error is one of package
// jose or ErrKeysUnavailable, with the issuer and subject that the token claims.
// Beside an error about time the facts are returned, which then are genuine.
//
// What was verified before is remembered by the token's hash, for as long as its
// issuer has the same keys and rules. Whether it is in time is asked each time.
func (t *Tokens) Verify(token string, accepted []string, now time.Time) (*identity.Token, error) {
	h := hashOf(token)
	if e, ok := t.cache.get(h); ok && slices.Contains(accepted, e.facts.Issuer) {
		if i, err := t.issuers.Issuer(e.facts.Issuer); err == nil && i == e.issuer {
			return inTime(i, e.facts, now)
		}
	}
	c, err := jose.Read(token)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(accepted, c.Issuer) {
		return nil, claims(c, jose.ErrIssuer)
	}
	i, err := t.issuer(c)
	if err != nil {
		return nil, claims(c, err)
	}
	facts, err := i.Verify(c)
	if err != nil {
		return nil, claims(c, err)
	}
	t.cache.put(h, seen{i, facts})
	return inTime(i, facts, now)
}

// issuer is the token's issuer with the key that the token names, where that can
// be had.
func (t *Tokens) issuer(c *jose.Claimed) (*jose.Issuer, error) {
	i, err := t.issuers.Issuer(c.Issuer)
	if err != nil || !i.HasKey(c) {
		i, err = t.issuers.Newer(c.Issuer, i)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrKeysUnavailable, err)
	}
	return i, nil
}

func inTime(i *jose.Issuer, facts *jose.Verified, now time.Time) (*identity.Token, error) {
	if err := i.InTime(facts, now); err != nil {
		return &facts.Token, err
	}
	return &facts.Token, nil
}

// claims adds to err whose the token says to be, which nobody has verified. It does
// not say of whom: a message cannot be erased.
func claims(c *jose.Claimed, err error) error {
	return fmt.Errorf("%w; unverified, it claims issuer %.256q", err, c.Issuer)
}
