// Package ca is the certificate authority of one trust domain: a root that is
// loaded only to make an intermediate, an intermediate that signs X509-SVIDs,
// and a key that signs JWT-SVIDs.
//
// It refuses to decide who may have a certificate, which is enrol's, and to
// release one that it has not linted.
package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
	"github.com/parleymesh/parley/internal/keys"
)

// Defaults of Config.
const (
	DefaultRootTTL         = 10 * 365 * 24 * time.Hour
	DefaultIntermediateTTL = 90 * 24 * time.Hour
)

// retry is how long an authority waits after it could not make an intermediate
// before it opens the root key again.
const retry = time.Minute

// Config says where an Authority is and how long what it makes lives.
type Config struct {
	// Dir is the folder with the authority's files, mode 0700; made if it is
	// not there. Nothing else belongs in it.
	Dir string
	// TrustDomain is fixed when the authority is created.
	TrustDomain identity.TrustDomain
	// Master seals every key.
	Master *keys.Master
	Clock  clock.Clock
	Logger *slog.Logger
	// RootTTL and IntermediateTTL are DefaultRootTTL and DefaultIntermediateTTL
	// where they are zero. An intermediate is replaced when less than half of
	// its life is left, and no leaf outlives its intermediate.
	RootTTL, IntermediateTTL time.Duration
	// Made, if set, is told of every root and intermediate once it is on disk,
	// for the record. It must not call the Authority.
	Made func(*x509.Certificate)
}

// An Authority signs for one trust domain. It is safe for concurrent use.
type Authority struct {
	cfg    Config
	root   *x509.Certificate
	jwt    *ecdsa.PrivateKey
	kid    string
	bundle *identity.Bundle
	// lintKey signs the throw-away copies that are linted; nobody trusts it.
	lintKey *ecdsa.PrivateKey
	issuing atomic.Pointer[issuer]

	mu       sync.Mutex // guards the intermediate's file, and notUntil
	notUntil time.Time  // no new attempt at an intermediate before
}

// An issuer is an intermediate with its key; immutable.
type issuer struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Open loads the authority of cfg.Dir, and creates one if the folder holds none;
// created says so. It makes a new intermediate where less than half of the old
// one's life is left; both chain to the same root. Errors are faults: KeyCorrupt,
// KeyUnreadable and KeyUnwritable of the files, CAForeign for another trust
// domain's folder, ClockWrong for a time before the authority existed,
// CertUnusable for a root that has ended.
func Open(cfg Config) (a *Authority, created bool, err error) {
	if cfg.TrustDomain.IsZero() || cfg.RootTTL < 0 || cfg.IntermediateTTL < 0 {
		return nil, false, fault.New(fault.Internal, "", "open the authority: no trust domain, or a negative life")
	}
	if cfg.RootTTL == 0 {
		cfg.RootTTL = DefaultRootTTL
	}
	if cfg.IntermediateTTL == 0 {
		cfg.IntermediateTTL = DefaultIntermediateTTL
	}
	unlock, err := lockDir(cfg.Dir)
	if err != nil {
		return nil, false, err
	}
	defer unlock()
	a = &Authority{cfg: cfg}
	if a.lintKey, err = newKey(); err != nil {
		return nil, false, err
	}
	if created, err = a.loadOrCreate(); err != nil {
		return nil, false, err
	}
	if err := a.loadIntermediate(); err != nil {
		return nil, false, err
	}
	if err := a.renewIntermediate(); err != nil {
		return nil, false, err
	}
	return a, created, nil
}

// Root is the trust domain's root certificate.
func (a *Authority) Root() *x509.Certificate { return a.root }

// Intermediate is the certificate that signs leaves now.
func (a *Authority) Intermediate() *x509.Certificate { return a.issuing.Load().cert }

// Bundle is what verifies everything that the authority signs.
func (a *Authority) Bundle() *identity.Bundle { return a.bundle }

// SignJWT signs a JWT-SVID that ends after ttl, cut to the second.
func (a *Authority) SignJWT(id identity.ID, audience []string, ttl time.Duration) (token string, expires time.Time, err error) {
	if id.TrustDomain() != a.cfg.TrustDomain || id.Path() == "" {
		return "", time.Time{}, fault.New(fault.CertUnusable, "", "%q is no workload of %s", id, a.cfg.TrustDomain)
	}
	now := a.cfg.Clock.Now()
	if err := a.checkClock(a.root, now); err != nil {
		return "", time.Time{}, err
	}
	expires = now.Add(ttl).UTC().Truncate(time.Second)
	token, err = jose.SignSVID(a.jwt, a.kid, id, audience, now, expires)
	if err != nil {
		return "", time.Time{}, err
	}
	return token, expires, nil
}

// setBundle makes the bundle of what is loaded. Root and JWT key are made
// together and stay, so its content never changes and neither does its sequence.
func (a *Authority) setBundle() (err error) {
	if a.kid, err = jose.KeyID(a.jwt.Public()); err != nil {
		return err
	}
	a.bundle = &identity.Bundle{
		TrustDomain: a.cfg.TrustDomain,
		Roots:       []*x509.Certificate{a.root},
		JWTKeys:     map[string]crypto.PublicKey{a.kid: a.jwt.Public()},
		Sequence:    1,
	}
	return nil
}

// checkClock refuses a time at which cert is not in force.
func (a *Authority) checkClock(cert *x509.Certificate, now time.Time) error {
	switch {
	case now.Before(cert.NotBefore):
		return fault.New(fault.ClockWrong, "compare `date -u` with a clock that you trust, and set this machine's",
			"this machine's clock says %s, but the authority in %s was in use at %s", stamp(now), a.cfg.Dir, stamp(cert.NotBefore))
	case now.After(cert.NotAfter):
		return fault.New(fault.CertUnusable, "compare `date -u` with a clock that you trust; if it is right, the trust domain needs a new authority",
			"a signing certificate of %s in %s ended at %s", a.cfg.TrustDomain, a.cfg.Dir, stamp(cert.NotAfter))
	}
	return nil
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

func newKey() (*ecdsa.PrivateKey, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return key, nil
}
