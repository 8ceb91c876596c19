package ca

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"net/url"
	"time"

	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
)

// ErrKey says that a public key may not be certified.
var ErrKey = errors.New("a certified key is ECDSA P-256 or P-384, Ed25519, or RSA of 2048 to 8192 bits")

// A Template is everything that a leaf says; nothing else gets in.
type Template struct {
	// ID is the one URI name; a workload's, of the authority's trust domain.
	ID identity.ID
	// PublicKey is a key that CheckKey admits. Whoever asks has proven to hold it.
	PublicKey crypto.PublicKey
	// TTL is the time from now to the end, above zero; cut to seconds, and to
	// the end of the intermediate.
	TTL time.Duration
	// DNSNames and IPs are further names.
	DNSNames []string
	IPs      []net.IP
}

// SignX509 signs an X509-SVID (X509-SVID.md sections 2 to 4) and returns it with
// its intermediate, leaf first. What would be signed is first signed by a key that
// nobody trusts, and linted; the real one is linted again and verified up to the
// root before it is released. It begins up to 30 s in the past, never before its
// intermediate.
func (a *Authority) SignX509(t Template) ([]*x509.Certificate, error) {
	now := a.cfg.Clock.Now()
	if err := a.checkTemplate(t); err != nil {
		return nil, err
	}
	is, err := a.current(now)
	if err != nil {
		return nil, err
	}
	tbs, err := leafTemplate(t, is.cert, now)
	if err != nil {
		return nil, err
	}
	trial := *is.cert
	trial.PublicKey = a.lintKey.Public()
	if _, err := signAndLint(tbs, &trial, t, a.lintKey); err != nil {
		return nil, err
	}
	leaf, err := signAndLint(tbs, is.cert, t, is.key)
	if err != nil {
		return nil, err
	}
	if err := a.verify(leaf, is.cert, now); err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "the authority made a certificate that does not verify")
	}
	return []*x509.Certificate{leaf, is.cert}, nil
}

// checkTemplate refuses what the caller may have wrong; lint refuses what this
// package may have wrong.
func (a *Authority) checkTemplate(t Template) error {
	if t.ID.TrustDomain() != a.cfg.TrustDomain || t.ID.Path() == "" {
		return fault.New(fault.CertUnusable, "", "%q is no workload of %s", t.ID, a.cfg.TrustDomain)
	}
	if t.TTL <= 0 {
		return fault.New(fault.CertUnusable, "", "%s: a certificate's life is above zero, not %s", t.ID, t.TTL)
	}
	if err := CheckKey(t.PublicKey); err != nil {
		return fault.Wrap(err, fault.CertUnusable, "", "%s", t.ID)
	}
	for _, name := range t.DNSNames {
		if !dnsName(name) {
			return fault.New(fault.CertUnusable, "", "%s: %q is no DNS name", t.ID, name)
		}
	}
	for _, ip := range t.IPs {
		if len(ip) != net.IPv4len && len(ip) != net.IPv6len {
			return fault.New(fault.CertUnusable, "", "%s: an IP address of %d bytes", t.ID, len(ip))
		}
	}
	return nil
}

// CheckKey says whether a public key, as package x509 parses one, may be
// certified; ErrKey if not.
func CheckKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return ErrKey
		}
		if _, err := k.ECDH(); err != nil { // not on the curve
			return ErrKey
		}
		return nil
	case ed25519.PublicKey:
		if len(k) == ed25519.PublicKeySize {
			return nil
		}
	case *rsa.PublicKey:
		if bits := k.N.BitLen(); bits >= 2048 && bits <= 8192 && k.E >= 3 && k.E%2 == 1 {
			return nil
		}
	}
	return ErrKey
}

// leafTemplate turns t into what package x509 signs. The subject is empty, so
// that the names stand in a critical extension (RFC 5280 section 4.2.1.6).
func leafTemplate(t Template, parent *x509.Certificate, now time.Time) (*x509.Certificate, error) {
	ski, err := keyIdentifier(t.PublicKey)
	if err != nil {
		return nil, err
	}
	notAfter := earlier(now.Add(t.TTL), parent.NotAfter).Truncate(time.Second)
	if !notAfter.After(now) {
		return nil, fault.New(fault.CertUnusable, "", "%s: a certificate of %s would end at once", t.ID, t.TTL)
	}
	// A short life is not doubled by the time before it began.
	back := min(backdate, t.TTL/2)
	return &x509.Certificate{
		SerialNumber:          newSerial(),
		NotBefore:             later(now.Add(-back), parent.NotBefore),
		NotAfter:              notAfter,
		URIs:                  []*url.URL{uri(t.ID)},
		DNSNames:              t.DNSNames,
		IPAddresses:           t.IPs,
		SubjectKeyId:          ski,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}, nil
}

func signAndLint(tbs, parent *x509.Certificate, want Template, key crypto.Signer) (*x509.Certificate, error) {
	leaf, err := create(tbs, parent, want.PublicKey, key, want.ID)
	if err != nil {
		return nil, err
	}
	if err := lint(leaf, parent, want); err != nil {
		return nil, fault.Wrap(err, fault.Internal, "", "the certificate for %s fails its lint", want.ID)
	}
	return leaf, nil
}

// create signs tbs and reads what was signed.
func create(tbs, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer, id identity.ID) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, tbs, parent, pub, key)
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", id, err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("sign for %s: %w", id, err)
	}
	return leaf, nil
}

// verify holds leaf to what every peer will hold it to.
func (a *Authority) verify(leaf, intermediate *x509.Certificate, now time.Time) error {
	id, err := identity.LeafID(leaf)
	if err != nil {
		return err
	}
	trust := identity.Trust{
		Bundles: map[identity.TrustDomain]*identity.Bundle{a.cfg.TrustDomain: a.bundle},
		Members: map[identity.ID]bool{id: true},
	}
	_, err = trust.Verify([]*x509.Certificate{leaf, intermediate}, now)
	return err
}

// publicKeyBits is the content of a SubjectPublicKeyInfo's bit string.
func publicKeyBits(der []byte) ([]byte, error) {
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &spki); err != nil {
		return nil, err
	}
	return spki.Key.Bytes, nil
}

func uri(id identity.ID) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: id.TrustDomain().String(), Path: id.Path()}
}
