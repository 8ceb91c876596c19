package jose

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// A Claimed is a token that was read and not verified: everything it says is what
// its sender says.
type Claimed struct {
	Issuer string

	token, kid, alg, typ string
}

// Read takes a JWT apart: a signed one in compact form of at most 8192 bytes,
// whose header and claims are JSON objects without a name that comes twice. What
// it finds only says which issuer's keys to try. Encrypted tokens have another
// form and are refused with it.
func Read(token string) (*Claimed, error) {
	head, payload, err := split(token)
	if err != nil {
		return nil, err
	}
	c := &Claimed{token: token}
	if err := c.header(head); err != nil {
		return nil, err
	}
	claims, err := object(payload)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTokenClaims, err)
	}
	if c.Issuer, err = optional(claims, "iss"); err != nil || c.Issuer == "" {
		return nil, fmt.Errorf("%w: iss", ErrTokenClaims)
	}
	return c, nil
}

// foreign are header parameters that a token is refused for. Some bring a key or
// say where to fetch one, and no honest verifier looks at them; the others change
// what the signature means (RFC 7515 section 4.1.11, RFC 7797) or say that another
// token is inside.
var foreign = []string{"jku", "jwk", "x5u", "x5c", "crit", "b64", "cty", "enc", "zip"}

// header admits what RFC 7515 section 4.1 calls for. Parameters that are not known
// are passed over, as section 4 has it.
func (c *Claimed) header(head []byte) error {
	fields, err := object(head)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrTokenHeader, err)
	}
	for _, name := range foreign {
		if _, ok := fields[name]; ok {
			return fmt.Errorf("%w: %s", ErrTokenHeader, name)
		}
	}
	for name, to := range map[string]*string{"alg": &c.alg, "kid": &c.kid, "typ": &c.typ} {
		if *to, err = optional(fields, name); err != nil {
			return fmt.Errorf("%w: %s", ErrTokenHeader, name)
		}
	}
	if _, ok := fields["typ"]; ok {
		c.typ = tokenType(c.typ)
	} else {
		c.typ = TypeAbsent
	}
	switch {
	case c.alg == "":
		return fmt.Errorf("%w: alg", ErrTokenHeader)
	case c.kid == "":
		return fmt.Errorf("%w: kid", ErrTokenHeader)
	}
	return nil
}

// readAccess reads the claims of a verified token (RFC 7519 section 4.1; RFC 9068
// section 2.2; scope of RFC 8693 section 4.2, which some issuers call scp).
func readAccess(payload []byte, issuer string) (*Verified, error) {
	fields, err := object(payload)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTokenClaims, err)
	}
	if _, ok := fields["cnf"]; ok {
		// As a bearer token it would be worth less than it says (RFC 9449 section 7.1).
		return nil, ErrBound
	}
	v := &Verified{}
	for _, claim := range []struct {
		name string
		to   *string
		must bool
	}{
		{"iss", &v.Issuer, true}, {"sub", &v.Subject, true}, {"client_id", &v.ClientID, false},
	} {
		if *claim.to, err = optional(fields, claim.name); err != nil || !named(*claim.to, claim.must) {
			return nil, fmt.Errorf("%w: %s", ErrTokenClaims, claim.name)
		}
	}
	if v.Issuer != issuer {
		return nil, ErrIssuer
	}
	if v.ClientID == "" { // what OpenID Connect calls it
		if v.ClientID, err = optional(fields, "azp"); err != nil || !named(v.ClientID, false) {
			return nil, fmt.Errorf("%w: azp", ErrTokenClaims)
		}
	}
	if v.Audiences, err = audiences(fields["aud"]); err != nil || slices.Contains(v.Audiences, "") {
		return nil, fmt.Errorf("%w: aud", ErrTokenClaims)
	}
	if v.Scopes, err = scopes(fields); err != nil {
		return nil, err
	}
	if v.Expires, err = date(fields, "exp"); err == nil && v.Expires.IsZero() {
		err = fmt.Errorf("%w: exp", ErrTokenClaims)
	}
	if err != nil {
		return nil, err
	}
	if v.notBefore, err = date(fields, "nbf"); err != nil {
		return nil, err
	}
	if v.issued, err = date(fields, "iat"); err != nil {
		return nil, err
	}
	return v, nil
}

// MaxName is the longest name of a caller, in bytes. OpenID Connect Core allows
// 255 characters (section 2); what is much longer has to fit into what the gateway
// tells services, too.
const MaxName = 512

// named says whether s may name somebody in a log: text of bounded length without
// control characters, and without the character that stands for what was not
// Unicode, which would make one of two names.
func named(s string, must bool) bool {
	if s == "" {
		return !must
	}
	return len(s) <= MaxName && !strings.ContainsFunc(s, func(c rune) bool { return c < ' ' || c >= 0x7f && c < 0xa0 || c == utf8.RuneError })
}

// date is a claim that is a time, zero where it is not there.
func date(fields map[string]json.RawMessage, name string) (time.Time, error) {
	raw, ok := fields[name]
	if !ok {
		return time.Time{}, nil
	}
	t, err := numericDate(raw)
	if err != nil {
		return time.Time{}, fmt.Errorf("%w: %s", ErrTokenClaims, name)
	}
	return t, nil
}

// scopes reads scope or scp, each text of words with a space between two, or a
// list. A token with both is refused: readers would disagree on which counts.
func scopes(fields map[string]json.RawMessage) ([]string, error) {
	name := "scope"
	raw, ok := fields[name]
	if other, also := fields["scp"]; also {
		if ok {
			return nil, fmt.Errorf("%w: scope and scp", ErrTokenClaims)
		}
		name, raw, ok = "scp", other, true
	}
	if !ok {
		return nil, nil
	}
	if raw[0] == '"' {
		words, err := optional(fields, name)
		if err != nil {
			return nil, fmt.Errorf("%w: %s", ErrTokenClaims, name)
		}
		return strings.Fields(words), nil
	}
	list, err := texts(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %s", ErrTokenClaims, name)
	}
	return list, nil
}

// texts is a list of text, and of nothing else.
func texts(raw json.RawMessage) ([]string, error) {
	var list []*string
	if json.Unmarshal(raw, &list) != nil || list == nil || slices.Contains(list, nil) {
		return nil, errors.New("not a list of text")
	}
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = *s
	}
	return out, nil
}
