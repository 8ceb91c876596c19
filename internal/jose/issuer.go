package jose

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/parleymesh/parley/internal/identity"
)

// Errors of Read, Verify and InTime, besides ErrMalformed, ErrTooLong,
// ErrAlgorithm, ErrSignature, ErrExpired and ErrNotYet. None repeats the token.
var (
	ErrTokenHeader = errors.New("the token's header is malformed, brings a key of its own, or asks for what is not supported")
	ErrType        = errors.New("the token is of a type that its issuer's tokens are not accepted in")
	ErrIssuer      = errors.New("the token is of another issuer")
	ErrNoKey       = errors.New("the issuer has no key of the token's kid")
	ErrTokenClaims = errors.New("the token lacks a claim among iss, sub, aud and exp, or has a malformed one")
	ErrTooOld      = errors.New("the token was issued too long ago")
	ErrBound       = errors.New("the token is bound to a key of its bearer (cnf), which is not verified here")
)

// The types of tokens (RFC 9068 section 2.1, RFC 7519 section 5.1).
const (
	TypeAccess = "at+jwt" // an access token
	TypeJWT    = "JWT"    // any JWT
	TypeAbsent = "absent" // one that does not say
)

// Rules are how an issuer's tokens are judged. They are configuration: nothing in
// a token widens them.
type Rules struct {
	// Issuer is the URL exactly as it stands in iss.
	Issuer string
	// Algorithms is a subset of Algorithms(), in order of preference.
	Algorithms []string
	// Types are the accepted ones.
	Types []string
	// Skew is by how much clocks may differ, for exp, nbf and iat.
	Skew time.Duration
	// MaxAge is how long after iat a token is accepted, 0 for as long as exp says.
	MaxAge time.Duration
}

// An Issuer is whose tokens are accepted, with the keys that it has now. It is
// immutable: an issuer with other keys or rules is another Issuer, so that what
// was verified by one says nothing about the other.
type Issuer struct {
	rules Rules
	keys  map[string]verifyingKey
}

// NewIssuer reads a JWK set, at most MaxKeySet bytes. refused are the keys of it
// that are not used. The error wraps ErrKeySet.
func NewIssuer(r Rules, set []byte) (i *Issuer, refused []RefusedKey, err error) {
	keys, refused, err := readKeySet(set, r.Algorithms)
	if err != nil {
		return nil, refused, err
	}
	return &Issuer{rules: r, keys: keys}, refused, nil
}

// KeyIDs are the kids of its keys, in order.
func (i *Issuer) KeyIDs() []string {
	var out []string
	for kid := range i.keys {
		out = append(out, kid)
	}
	slices.Sort(out)
	return out
}

// HasKey says that i has the key which c names.
func (i *Issuer) HasKey(c *Claimed) bool { _, ok := i.keys[c.kid]; return ok }

// A Verified is what a token says whose signature was verified. Whether it is in
// time has to be asked each time it is used.
type Verified struct {
	identity.Token
	notBefore, issued time.Time // zero where the token does not say
}

// Size is about how many bytes v keeps.
func (v *Verified) Size() int {
	return len(v.Issuer) + len(v.Subject) + len(v.ClientID) + 256 + sizeOf(v.Audiences) + sizeOf(v.Scopes)
}

func sizeOf(list []string) (n int) {
	for _, s := range list {
		n += len(s) + 16
	}
	return n
}

// Verify checks c by the keys and rules of i: type, algorithm, signature, and that
// every claim that is needed is there and well formed. It does not check times and
// audience: InTime does the first, whoever knows the audience the second.
func (i *Issuer) Verify(c *Claimed) (*Verified, error) {
	key, ok := i.keys[c.kid]
	switch {
	case c.Issuer != i.rules.Issuer:
		return nil, ErrIssuer
	case !slices.Contains(i.rules.Types, c.typ):
		return nil, ErrType
	case !ok:
		return nil, ErrNoKey
	case c.alg != string(key.alg):
		return nil, ErrAlgorithm
	}
	payload, err := verify(c.token, key.alg, key.pub)
	if err != nil {
		return nil, err
	}
	// From here on only the bytes that the signature covers are read.
	return readAccess(payload, i.rules.Issuer)
}

// InTime says whether v may be used at now.
func (i *Issuer) InTime(v *Verified, now time.Time) error {
	early, late := now.Add(i.rules.Skew), now.Add(-i.rules.Skew)
	switch {
	case !late.Before(v.Expires):
		return ErrExpired
	case early.Before(v.notBefore), early.Before(v.issued):
		return ErrNotYet
	case i.rules.MaxAge == 0:
		return nil
	case v.issued.IsZero():
		return fmt.Errorf("%w: iat, which max_age needs", ErrTokenClaims)
	case late.Sub(v.issued) > i.rules.MaxAge:
		return ErrTooOld
	}
	return nil
}

// tokenType is typ as one of the Type constants, empty for any other type: media
// types compare without regard to case, and application/ may be left out (RFC 7515
// section 4.1.9).
func tokenType(typ string) string {
	switch strings.TrimPrefix(strings.ToLower(typ), "application/") {
	case "jwt":
		return TypeJWT
	case "at+jwt":
		return TypeAccess
	}
	return ""
}
