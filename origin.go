package parley

import (
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/gate/authn"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
)

// An Origin is whom a gateway let in, by an API key, a token, or both. The scopes
// of one say nothing about the other.
type Origin struct {
	// Name is one that no other origin has: "https://id.shop.example#alice" or
	// "api_key:4fG7hJ9kLmN0".
	Name string
	// Key is the API key, nil where none was presented.
	Key *OriginKey
	// Token is what the token says, nil where none was presented.
	Token *OriginToken
	// ScopesOmitted says that the scopes were too long to be told.
	ScopesOmitted bool
}

// An OriginKey is an API key, and never the key itself.
type OriginKey struct {
	ID, Name string
	Scopes   []string
}

// An OriginToken is what a token says that a gateway has verified. Subject is one
// within its Issuer only.
type OriginToken struct {
	Issuer, Subject, ClientID string
	Scopes                    []string
}

// ReadOrigin is for a program behind its sidecar: it reads the field
// Parley-Identity of a request's header, and is nil where there is none. It
// verifies nothing: the sidecar has, and has dropped every field that was not good.
// Whoever reaches the program beside its sidecar can write the field himself. A
// program without a sidecar uses CallerFrom.
func ReadOrigin(h http.Header) (*Origin, error) {
	fields := h[call.IdentityField]
	switch len(fields) {
	case 0:
		return nil, nil
	case 1:
	default:
		return nil, fmt.Errorf("parley: %w", authn.ErrIdentitySeveral)
	}
	i, err := jose.ReadIdentity(fields[0])
	if err != nil {
		return nil, fmt.Errorf("parley: %w", err)
	}
	return newOrigin(i), nil
}

func newOrigin(i *jose.Identity) *Origin {
	o := &Origin{Name: i.Subject(), ScopesOmitted: i.ScopesOmitted}
	if c := &i.Caller; c.KeyID != "" {
		o.Key = &OriginKey{c.KeyID, c.KeyName, append([]string(nil), c.Scopes...)}
	}
	if t := i.Caller.Token; t != nil {
		o.Token = &OriginToken{t.Issuer, t.Subject, t.ClientID, append([]string(nil), t.Scopes...)}
	}
	return o
}

var errFolded = errors.New("the field " + call.IdentityField + " in another spelling")

// origin is whom from says that it let in, and req without the field where it says
// nothing that is believed. A spelling that applications take for the same is
// dropped, and of a gateway, which has no such, refused.
func (r *running) origin(req *http.Request, from identity.ID, leaf *x509.Certificate) (*http.Request, *Origin, error) {
	vouches, folded := authn.Vouches(from, r.id()), false
	for name := range req.Header {
		folded = folded || name != call.IdentityField && isIdentity(name)
	}
	if vouches && folded {
		return req, nil, errFolded
	}
	if vouches {
		i, err := r.told.From(req.Header[call.IdentityField], leaf, from, r.id(), r.clk.Now())
		if i == nil {
			return req, nil, err
		}
		return req, newOrigin(i), nil
	}
	if !folded && req.Header[call.IdentityField] == nil {
		return req, nil, nil
	}
	req = req.WithContext(req.Context()) // the caller's own stays as it was
	header := make(http.Header, len(req.Header))
	for name, values := range req.Header {
		if !isIdentity(name) {
			header[name] = values
		}
	}
	req.Header = header
	return req, nil, nil
}

// withoutTrailers is req whose trailers say nothing of who calls: nobody of the mesh
// sends that there. net/http adds trailers as the body ends, the unannounced too
// where some are announced.
func withoutTrailers(req *http.Request) *http.Request {
	if len(req.Trailer) == 0 {
		return req
	}
	dropIdentity(req.Trailer)
	req = req.WithContext(req.Context())
	req.Body = trimmed{req.Body, req.Trailer}
	return req
}

// A trimmed body drops what its trailers say of who calls.
type trimmed struct {
	io.ReadCloser
	trailer http.Header
}

// Read implements io.Reader.
func (t trimmed) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	if err != nil {
		dropIdentity(t.trailer)
	}
	return n, err
}

func dropIdentity(h http.Header) {
	for name := range h {
		if isIdentity(name) {
			delete(h, name)
		}
	}
}

// isIdentity says that an application may take a field of that name for
// call.IdentityField: CGI and what came of it make one of - and _.
func isIdentity(name string) bool {
	return len(name) == len(call.IdentityField) && strings.EqualFold(strings.ReplaceAll(name, "_", "-"), call.IdentityField)
}
