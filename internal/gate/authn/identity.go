package authn

import (
	"bytes"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
)

// reuse is how long a signed identity is sent. What is left of its life then is
// for the way, and for clocks that differ.
const reuse = 45 * time.Second

// ErrIdentitySeveral says that a request has more than one identity.
var ErrIdentitySeveral = errors.New("more than one " + call.IdentityField)

// A Signer signs for services whom a gateway let in, and remembers what it
// signed. What may not be sent any more is dropped with the Signer: a new revision
// has a new one. It is safe for concurrent use; the zero Signer is ready for use.
type Signer struct{ cache cache[signing, signed] }

// A signing is all that one signature depends on: with another leaf or under
// another trust epoch it is another.
type signing struct {
	leaf     [sha256.Size]byte
	epoch    uint64
	revision int64
	to       identity.ID
	key      string
	// token is what one verified token says: its facts are as many as are
	// remembered of it, and always the same for as long.
	token *identity.Token
}

// A signed identity is sent from one time to another.
type signed struct {
	token       string
	from, until time.Time
	facts       int // bytes of what it keeps from being forgotten
}

func (s signed) size() int { return len(s.token) + s.facts }

// An Admission is that a gateway let a caller in who calls a service.
type Admission struct {
	Caller *identity.Caller
	To     identity.ID
	// Revision and Epoch are those by which it was let in.
	Revision int64
	Epoch    uint64
}

// Sign is a as an identity token that own's holder sends at now, empty for a
// caller who is nobody. It is good for a minute, and not past the end of own, of
// the caller's key and of the caller's token: but a second at least, since a token
// may be let in that has ended within its issuer's clock_skew.
func (s *Signer) Sign(own *identity.Credential, a Admission, now time.Time) (string, error) {
	c := a.Caller
	if c.KeyID == "" && c.Token == nil {
		return "", nil
	}
	key := signing{leaf: own.Thumbprint(), epoch: a.Epoch, revision: a.Revision, to: a.To, key: c.KeyID, token: c.Token}
	if known, ok := s.cache.get(key); ok && !now.Before(known.from) && now.Before(known.until) {
		return known.token, nil
	}
	i := &jose.Identity{
		Issuer: own.ID, Audience: a.To, Caller: *c, Revision: a.Revision,
		Issued: now.Truncate(time.Second), Expires: now.Add(jose.IdentityLife).Truncate(time.Second),
	}
	for _, end := range []time.Time{own.NotAfter(), c.KeyNotAfter, tokenEnd(c.Token)} {
		if end = end.Truncate(time.Second); !end.IsZero() && end.Before(i.Expires) {
			i.Expires = end
		}
	}
	if least := i.Issued.Add(time.Second); i.Expires.Before(least) {
		i.Expires = least
	}
	token, err := jose.SignIdentity(own, i)
	if err != nil {
		return "", err
	}
	until := i.Issued.Add(reuse)
	if i.Expires.Before(until) {
		until = i.Expires
	}
	s.cache.put(key, signed{token, i.Issued, until, i.Size()})
	return token, nil
}

func tokenEnd(t *identity.Token) time.Time {
	if t == nil {
		return time.Time{}
	}
	return t.Expires
}

// A Verifier verifies what gateways say of their callers, and remembers what was
// good. It is safe for concurrent use; the zero Verifier is ready for use.
type Verifier struct{ cache cache[tokenHash, told] }

// A told identity, and the certificate by whose key it was verified.
type told struct {
	leaf *x509.Certificate
	*jose.Identity
}

func (t told) size() int { return t.Size() + len(t.leaf.Raw) }

// From is the identity that stands in the fields of a request of a connection
// whose peer presented leaf, and is from; to is who received it. It is nil where
// none stands there. The error is one of package jose or ErrIdentitySeveral. Only
// a gateway of to's own trust domain may be asked about; see Vouches.
func (v *Verifier) From(fields []string, leaf *x509.Certificate, from, to identity.ID, now time.Time) (*jose.Identity, error) {
	switch {
	case len(fields) == 0:
		return nil, nil
	case len(fields) > 1:
		return nil, ErrIdentitySeveral
	case leaf == nil:
		return nil, jose.ErrOtherLeaf
	}
	h := hashOf(fields[0])
	known, ok := v.cache.get(h)
	if !ok || !bytes.Equal(known.leaf.Raw, leaf.Raw) {
		i, err := jose.VerifyIdentity(fields[0], leaf)
		if err != nil {
			return nil, err
		}
		known = told{leaf, i}
		v.cache.put(h, known)
	}
	if err := known.Holds(from, to, now); err != nil {
		return nil, fmt.Errorf("identity of %s: %w", subject(known.Identity), err)
	}
	return known.Identity, nil
}

// subject is whom an identity is of, as a message has it.
func subject(i *jose.Identity) string {
	if i.Caller.Token != nil {
		return fmt.Sprintf("%.128q", i.Caller.Token.Subject)
	}
	return "API key " + i.Caller.KeyID
}

// Vouches says that what from says of its callers is believed by to: a gateway of
// its own trust domain is. Of anybody else the field is dropped, and not even read.
func Vouches(from, to identity.ID) bool {
	return from.IsGateway() && from.TrustDomain() == to.TrustDomain()
}
