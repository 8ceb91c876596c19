// Package identity is who: SPIFFE IDs, credentials, what a trust domain trusts,
// and who makes a request. It is data and pure functions, at the bottom of the
// house; mtls verifies with it, enrol issues into it, every room reads it.
//
// It refuses to fetch, to store and to decide what anybody may do.
package identity

import (
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"slices"
	"time"
)

// ErrNoCredential says that a Source has nothing to present now.
var ErrNoCredential = errors.New("no credential")

// A Credential is an X509-SVID with its private key. It is immutable.
type Credential struct {
	// ID is the leaf's one URI SAN.
	ID ID
	// Chain is the leaf and its intermediates, leaf first, without the root.
	Chain []*x509.Certificate
	// Key signs for the leaf.
	Key crypto.Signer

	cert       tls.Certificate
	thumbprint [sha256.Size]byte
}

// NewCredential checks that chain's leaf is a well-formed X509-SVID and that
// key is the leaf's.
func NewCredential(chain []*x509.Certificate, key crypto.Signer) (*Credential, error) {
	if len(chain) == 0 || key == nil {
		return nil, ErrNoCredential
	}
	id, err := LeafID(chain[0])
	if err != nil {
		return nil, err
	}
	pub, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !pub.Equal(chain[0].PublicKey) {
		return nil, errors.New("the private key is not the certificate's")
	}
	c := &Credential{ID: id, Chain: chain, Key: key, thumbprint: sha256.Sum256(chain[0].Raw)}
	c.cert = tls.Certificate{PrivateKey: key, Leaf: chain[0]}
	for _, x := range chain {
		c.cert.Certificate = append(c.cert.Certificate, x.Raw)
	}
	return c, nil
}

// Certificate is the credential as crypto/tls wants it. It is shared: do not change it.
func (c *Credential) Certificate() *tls.Certificate { return &c.cert }

// Thumbprint is the SHA-256 of the leaf.
func (c *Credential) Thumbprint() [sha256.Size]byte { return c.thumbprint }

// Serial is the leaf's serial number in lower-case hexadecimal.
func (c *Credential) Serial() string { return Serial(c.Chain[0]) }

// NotAfter is when the leaf ends.
func (c *Credential) NotAfter() time.Time { return c.Chain[0].NotAfter }

// NotBefore is when the leaf begins.
func (c *Credential) NotBefore() time.Time { return c.Chain[0].NotBefore }

// Serial is a certificate's serial number in lower-case hexadecimal.
func Serial(cert *x509.Certificate) string { return hex.EncodeToString(cert.SerialNumber.Bytes()) }

// Fingerprint is the SHA-256 of the whole certificate in lower-case hexadecimal.
func Fingerprint(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// A Source is where a credential and the trust that goes with it come from:
// the only way for a room to get either. Implementations are safe for
// concurrent use and never block; what they return is immutable.
type Source interface {
	// Credential is the current one, or an error such as ErrNoCredential.
	Credential() (*Credential, error)
	// Trust is the current trust, never nil once the source is in use.
	Trust() *Trust
}

// A Caller is who makes a request, by every proof it brought. The zero Caller
// is nobody.
type Caller struct {
	// Workload is the verified identity of the connection's peer, zero at an
	// edge without client certificates.
	Workload ID
	// KeyID names the API key that was presented and found valid; never the
	// secret. KeyName is the label given to it at creation.
	KeyID, KeyName string
	// Scopes are what the API key carries.
	Scopes []string
	// KeyNotAfter is the API key's end, zero for none.
	KeyNotAfter time.Time
	// Token is what the token that was presented and found valid says, nil where
	// none was. It is shared: do not change it.
	Token *Token
	// Origin is whom the gateway let in that Workload is, as it says by its
	// signature: an API key, a token, or both. It is nil where Workload is no gateway
	// or said nothing. Rules are not about it.
	Origin *Caller
}

// IsZero says that nobody was authenticated.
func (c Caller) IsZero() bool { return c.Workload.IsZero() && c.KeyID == "" && c.Token == nil }

// HasScopes says that the caller's API key carries all of want.
func (c Caller) HasScopes(want []string) bool { return holds(c.Scopes, want) }

// A Token is what a verified JWT says of its bearer (RFC 7519 section 4.1, RFC
// 9068 section 2.2). It is immutable, and never the token itself.
type Token struct {
	// Issuer and Subject say who the bearer is: a subject is one within its
	// issuer only. ClientID is the program that acts for it, where the token
	// names one.
	Issuer, Subject, ClientID string
	// Audiences are whom the token is for.
	Audiences []string
	// Scopes are what the token carries.
	Scopes []string
	// Expires is the token's exp.
	Expires time.Time
}

// HasScopes says that the token carries all of want.
func (t *Token) HasScopes(want []string) bool { return holds(t.Scopes, want) }

func holds(scopes, want []string) bool {
	for _, w := range want {
		if !slices.Contains(scopes, w) {
			return false
		}
	}
	return true
}
