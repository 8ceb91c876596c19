package ca_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/enrol/ca"
)

// Each of these is what a defect of the authority would sign; lint must see it.
func TestLint(t *testing.T) {
	t.Parallel()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	parent := issuer(t, key)
	want := ca.Template{ID: service("web"), PublicKey: key.Public(), TTL: time.Hour, DNSNames: []string{"a.example"}, IPs: []net.IP{net.IPv6loopback}}
	tests := []struct {
		name string
		edit func(*x509.Certificate)
		ok   bool
	}{
		{"good", func(*x509.Certificate) {}, true},
		{"other name", func(c *x509.Certificate) { c.URIs = uris("spiffe://shop.example/orders") }, false},
		{"two names", func(c *x509.Certificate) {
			c.URIs = uris("spiffe://shop.example/web", "spiffe://shop.example/orders")
		}, false},
		{"CA", func(c *x509.Certificate) { c.IsCA = true }, false},
		{"no basic constraints", func(c *x509.Certificate) { c.BasicConstraintsValid = false }, false},
		{"more key usage", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyEncipherment }, false},
		{"no extended usage", func(c *x509.Certificate) { c.ExtKeyUsage = nil }, false},
		{"more extended usage", func(c *x509.Certificate) { c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageCodeSigning) }, false},
		{"subject", func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "web"} }, false},
		{"mail address", func(c *x509.Certificate) { c.EmailAddresses = []string{"a@b.example"} }, false},
		{"more DNS names", func(c *x509.Certificate) { c.DNSNames = append(c.DNSNames, "b.example") }, false},
		{"no DNS name", func(c *x509.Certificate) { c.DNSNames = nil }, false},
		{"other address", func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(1, 1, 1, 1)} }, false},
		{"long serial number", func(c *x509.Certificate) { c.SerialNumber = new(big.Int).Lsh(big.NewInt(1), 140) }, false},
		{"outlives its intermediate", func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = parent.NotAfter.Add(-time.Minute), parent.NotAfter.Add(time.Second)
		}, false},
		{"older than its intermediate", func(c *x509.Certificate) { c.NotBefore = parent.NotBefore.Add(-time.Second) }, false},
		{"lives too long", func(c *x509.Certificate) { c.NotAfter = c.NotBefore.Add(2 * time.Hour) }, false},
		{"no subject key", func(c *x509.Certificate) { c.SubjectKeyId = nil }, false},
		{"unknown extension", func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: []byte{5, 0}}}
		}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			begin := parent.NotBefore.Add(time.Hour)
			c := &x509.Certificate{
				SerialNumber: big.NewInt(7), NotBefore: begin, NotAfter: begin.Add(time.Hour),
				URIs: uris("spiffe://shop.example/web"), DNSNames: []string{"a.example"}, IPAddresses: want.IPs,
				SubjectKeyId: []byte{1}, KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
				ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
			}
			tt.edit(c)
			leaf := must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, c, parent, key.Public(), key))))
			if err := ca.Lint(leaf, parent, want); (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
		})
	}
	t.Run("another key", func(t *testing.T) {
		t.Parallel()
		cfg, _ := config(t)
		leaf := sign(t, open(t, cfg))[0]
		want := ca.Template{ID: service("web"), PublicKey: key.Public(), TTL: time.Hour}
		if err := ca.Lint(leaf, parent, want); err == nil {
			t.Error("not seen")
		}
	})
	t.Run("another issuer", func(t *testing.T) {
		t.Parallel()
		cfg, _ := config(t)
		leaf := sign(t, open(t, cfg))[0]
		want := ca.Template{ID: service("web"), PublicKey: leaf.PublicKey, TTL: time.Hour}
		if err := ca.Lint(leaf, parent, want); err == nil {
			t.Error("not seen")
		}
	})
}

// issuer is a signing certificate over key.
func issuer(t *testing.T, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	at := newHand().Now().Truncate(time.Second)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{Organization: []string{"test"}}, SubjectKeyId: []byte{2},
		NotBefore: at.Add(-day), NotAfter: at.Add(day), KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, c, c, key.Public(), key))))
}

func uris(all ...string) (out []*url.URL) {
	for _, u := range all {
		out = append(out, must(url.Parse(u)))
	}
	return out
}
