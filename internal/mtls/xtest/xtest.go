// Package xtest is a certificate authority in memory, for tests of the rooms
// that make or accept mesh connections. It issues good certificates, and bad
// ones on request.
//
// It refuses to be imported by anything but tests.
package xtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/identity"
)

// A CA is a root that signs leaves.
type CA struct {
	Domain identity.TrustDomain
	Root   *x509.Certificate
	key    *ecdsa.PrivateKey
}

// NewCA is a new root for the trust domain called name.
func NewCA(tb testing.TB, name string) *CA {
	tb.Helper()
	td, err := identity.ParseTrustDomain(name)
	if err != nil {
		tb.Fatal(err)
	}
	key := newKey(tb)
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber:          serial(tb),
		Subject:               pkix.Name{CommonName: "root of " + name},
		NotBefore:             now.Add(-time.Hour),
		NotAfter:              now.Add(24 * time.Hour),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true, IsCA: true,
		URIs: []*url.URL{parse(tb, td.ID().String())},
	}
	return &CA{Domain: td, Root: sign(tb, tmpl, tmpl, key, key), key: key}
}

// ID is the service called name.
func (ca *CA) ID(tb testing.TB, name string) identity.ID {
	tb.Helper()
	id, err := identity.ServiceID(ca.Domain, name)
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

// Leaf is a good X509-SVID template for id that lasts for ttl.
func Leaf(tb testing.TB, id identity.ID, ttl time.Duration) *x509.Certificate {
	tb.Helper()
	now := time.Now()
	return &x509.Certificate{
		SerialNumber:          serial(tb),
		NotBefore:             now.Add(-time.Minute),
		NotAfter:              now.Add(ttl),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		URIs:                  []*url.URL{parse(tb, id.String())},
		DNSNames:              []string{"localhost"},
	}
}

// Sign signs whatever tmpl says, for a key of its own.
func (ca *CA) Sign(tb testing.TB, tmpl *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey) {
	tb.Helper()
	key := newKey(tb)
	return sign(tb, tmpl, ca.Root, key, ca.key), key
}

// Credential is a good one for the service called name.
func (ca *CA) Credential(tb testing.TB, name string, ttl time.Duration) *identity.Credential {
	tb.Helper()
	return ca.CredentialFor(tb, ca.ID(tb, name), ttl)
}

// CredentialFor is a good one for id.
func (ca *CA) CredentialFor(tb testing.TB, id identity.ID, ttl time.Duration) *identity.Credential {
	tb.Helper()
	leaf, key := ca.Sign(tb, Leaf(tb, id, ttl))
	cred, err := identity.NewCredential([]*x509.Certificate{leaf}, key)
	if err != nil {
		tb.Fatal(err)
	}
	return cred
}

// Trust trusts the authorities and admits members.
func Trust(epoch uint64, authorities []*CA, members ...identity.ID) *identity.Trust {
	t := &identity.Trust{
		Epoch:   epoch,
		Bundles: map[identity.TrustDomain]*identity.Bundle{},
		Members: map[identity.ID]bool{}, Banned: map[identity.ID]bool{},
	}
	for _, ca := range authorities {
		b := t.Bundles[ca.Domain]
		if b == nil {
			b = &identity.Bundle{TrustDomain: ca.Domain}
			t.Bundles[ca.Domain] = b
		}
		b.Roots = append(b.Roots, ca.Root)
	}
	for _, id := range members {
		t.Members[id] = true
	}
	return t
}

// A Source is an identity.Source whose parts can be replaced.
type Source struct {
	mu    sync.RWMutex // guards what follows
	cred  *identity.Credential
	trust *identity.Trust
}

// NewSource holds cred, which may be nil, and trust.
func NewSource(cred *identity.Credential, trust *identity.Trust) *Source {
	return &Source{cred: cred, trust: trust}
}

// Credential implements identity.Source.
func (s *Source) Credential() (*identity.Credential, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.cred == nil {
		return nil, identity.ErrNoCredential
	}
	return s.cred, nil
}

// Trust implements identity.Source.
func (s *Source) Trust() *identity.Trust {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.trust
}

// SetCredential renews.
func (s *Source) SetCredential(c *identity.Credential) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cred = c
}

// SetTrust changes the trust.
func (s *Source) SetTrust(t *identity.Trust) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trust = t
}

func newKey(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func serial(tb testing.TB) *big.Int {
	tb.Helper()
	n, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		tb.Fatal(err)
	}
	return n
}

func parse(tb testing.TB, uri string) *url.URL {
	tb.Helper()
	u, err := url.Parse(uri)
	if err != nil {
		tb.Fatal(err)
	}
	return u
}

func sign(tb testing.TB, tmpl, parent *x509.Certificate, key, signer *ecdsa.PrivateKey) *x509.Certificate {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}
