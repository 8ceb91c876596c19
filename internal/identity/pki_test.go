package identity_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/identity"
)

// noon is when the certificates of these tests are looked at; they live from an
// hour before to an hour after.
func noon() time.Time { return time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC) }

// An authority of a test signs anything.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// serial makes serial numbers unique within the process.
func serial(t testing.TB) *big.Int {
	return must(rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100)))
}

// sans is a subject alternative name extension with exactly these URIs, as bytes
// that no URL library has touched.
func sans(uris ...string) pkix.Extension {
	names := []asn1.RawValue{}
	for _, u := range uris {
		names = append(names, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(u)})
	}
	return pkix.Extension{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Critical: true, Value: must(asn1.Marshal(names))}
}

func leafTemplate(t testing.TB, uris ...string) *x509.Certificate {
	return &x509.Certificate{
		SerialNumber: serial(t), NotBefore: noon().Add(-time.Hour), NotAfter: noon().Add(time.Hour),
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
		ExtraExtensions:       []pkix.Extension{sans(uris...)},
	}
}

func signerTemplate(t testing.TB, name string, uris ...string) *x509.Certificate {
	c := leafTemplate(t, uris...)
	if len(uris) == 0 {
		c.ExtraExtensions = nil
	}
	c.Subject = pkix.Name{Organization: []string{name}}
	c.KeyUsage, c.ExtKeyUsage, c.IsCA = x509.KeyUsageCertSign, nil, true
	return c
}

// root signs template with its own key.
func root(t testing.TB, template *x509.Certificate) authority {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	return authority{sign(t, template, template, key.Public(), key), key}
}

func (a authority) intermediate(t testing.TB, template *x509.Certificate) authority {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	return authority{sign(t, template, a.cert, key.Public(), a.key), key}
}

func (a authority) leaf(t testing.TB, template *x509.Certificate) *x509.Certificate {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	return sign(t, template, a.cert, key.Public(), a.key)
}

func sign(t testing.TB, template, parent *x509.Certificate, pub crypto.PublicKey, key crypto.Signer) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// trusting is a Trust with one bundle, in which ids are members.
func trusting(t testing.TB, td string, roots []*x509.Certificate, ids ...string) *identity.Trust {
	d := trustDomain(t, td)
	trust := &identity.Trust{
		Bundles: map[identity.TrustDomain]*identity.Bundle{d: {TrustDomain: d, Roots: roots}},
		Members: map[identity.ID]bool{},
		Banned:  map[identity.ID]bool{},
	}
	for _, id := range ids {
		trust.Members[must(identity.ParseID(id))] = true
	}
	return trust
}
