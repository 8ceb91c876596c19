package assess

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/parleymesh/parley/internal/identity"
)

// A forger makes certificates that need no real authority: of a CA of another trust
// domain, and of one that calls itself exactly as the real one does. Its keys live as
// long as the session.
type forger struct {
	now            time.Time
	foreign, alike *authority
}

// foreignDomain is nobody's: .invalid is kept free (RFC 6761 section 6.4).
const foreignDomain = "foreign.invalid"

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newForger imitates real.
func newForger(real *x509.Certificate, now time.Time) (*forger, error) {
	f := &forger{now: now}
	var err error
	if f.foreign, err = newAuthority(&x509.Certificate{
		Subject: pkix.Name{CommonName: "foreign"},
		URIs:    []*url.URL{{Scheme: "spiffe", Host: foreignDomain}},
	}, now); err != nil {
		return nil, err
	}
	f.alike, err = newAuthority(&x509.Certificate{
		RawSubject: real.RawSubject, SerialNumber: real.SerialNumber, SubjectKeyId: real.SubjectKeyId, URIs: real.URIs,
	}, now)
	return f, err
}

func newAuthority(like *x509.Certificate, now time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	tmpl := *like
	if tmpl.SerialNumber == nil {
		tmpl.SerialNumber = serial()
	}
	tmpl.NotBefore, tmpl.NotAfter = now.Add(-time.Hour), now.Add(time.Hour)
	tmpl.IsCA, tmpl.BasicConstraintsValid = true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, &tmpl, &tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make a throw-away CA: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{cert, key}, err
}

// leaf is a certificate for id that nothing is wrong with but who signed it. The
// throw-away root is sent along, as an attacker would.
func (f *forger) leaf(by *authority, id identity.ID) (*tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: serial(), NotBefore: f.now.Add(-time.Minute), NotAfter: f.now.Add(10 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{{Scheme: "spiffe", Host: id.TrustDomain().String(), Path: id.Path()}},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, by.cert, key.Public(), by.key)
	if err != nil {
		return nil, fmt.Errorf("forge a certificate: %w", err)
	}
	return &tls.Certificate{Certificate: [][]byte{der, by.cert.Raw}, PrivateKey: key}, nil
}

// foreignID is the name of id in the foreign trust domain.
func foreignID(id identity.ID) (identity.ID, error) {
	td, err := identity.ParseTrustDomain(foreignDomain)
	if err != nil {
		return identity.ID{}, err
	}
	return identity.NewID(td, id.Path())
}

func serial() *big.Int {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never returns an error (crypto/rand)
	b[0] = b[0]&0x7f | 1
	return new(big.Int).SetBytes(b)
}
