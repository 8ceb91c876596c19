package identity_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"testing"

	"github.com/parleymesh/parley/internal/identity"
)

func TestLeafID(t *testing.T) {
	t.Parallel()
	ca := root(t, signerTemplate(t, "root", "spiffe://td"))
	tests := []struct {
		name string
		uris []string
		edit func(*x509.Certificate)
		want error
	}{
		{"good", []string{"spiffe://td/a"}, nil, nil},
		{"without extended usage", []string{"spiffe://td/a"}, func(c *x509.Certificate) { c.ExtKeyUsage = nil }, nil},
		{"key agreement too", []string{"spiffe://td/a"}, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageKeyAgreement }, nil},
		{"no URI", nil, nil, identity.ErrURICount},
		{"two URIs", []string{"spiffe://td/a", "spiffe://td/b"}, nil, identity.ErrURICount},
		{"the same URI twice", []string{"spiffe://td/a", "spiffe://td/a"}, nil, identity.ErrURICount},
		{"second URI of another kind", []string{"spiffe://td/a", "https://td/b"}, nil, identity.ErrURICount},
		{"not SPIFFE", []string{"https://td/a"}, nil, identity.ErrScheme},
		{"trust domain's ID", []string{"spiffe://td"}, nil, identity.ErrLeafNoPath},
		{"root path", []string{"spiffe://td/"}, nil, identity.ErrEmptySeg},
		{"percent-encoding", []string{"spiffe://td/%61"}, nil, identity.ErrPath},
		{"query", []string{"spiffe://td/a?b"}, nil, identity.ErrPath},
		// net/url would lose these on the way.
		{"scheme in capitals", []string{"SPIFFE://td/a"}, nil, identity.ErrScheme},
		{"empty fragment", []string{"spiffe://td/a#"}, nil, identity.ErrPath},
		{"CA", []string{"spiffe://td/a"}, func(c *x509.Certificate) { c.IsCA = true }, identity.ErrLeafIsCA},
		{"no digitalSignature", []string{"spiffe://td/a"}, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyEncipherment }, identity.ErrLeafUsage},
		{"no key usage", []string{"spiffe://td/a"}, func(c *x509.Certificate) { c.KeyUsage = 0 }, identity.ErrLeafUsage},
		{"keyCertSign", []string{"spiffe://td/a"}, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, identity.ErrLeafUsage},
		{"cRLSign", []string{"spiffe://td/a"}, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCRLSign }, identity.ErrLeafUsage},
		{"key usage not critical", []string{"spiffe://td/a"}, func(c *x509.Certificate) {
			c.KeyUsage = 0
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{
				Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Value: []byte{3, 2, 7, 0x80},
			})
		}, identity.ErrLeafUsage},
		{"server only", []string{"spiffe://td/a"}, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, identity.ErrLeafEKU},
		{"client only", []string{"spiffe://td/a"}, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[1:] }, identity.ErrLeafEKU},
		{"any usage", []string{"spiffe://td/a"}, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny} }, identity.ErrLeafEKU},
		{"an unknown usage only", []string{"spiffe://td/a"}, func(c *x509.Certificate) {
			c.ExtKeyUsage, c.UnknownExtKeyUsage = nil, []asn1.ObjectIdentifier{{1, 2, 3}}
		}, identity.ErrLeafEKU},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			template := leafTemplate(t, tt.uris...)
			if tt.edit != nil {
				tt.edit(template)
			}
			id, err := identity.LeafID(ca.leaf(t, template))
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if err == nil && id.String() != tt.uris[0] || err != nil && !id.IsZero() {
				t.Errorf("got the ID %q", id)
			}
		})
	}
}

func TestCheckSigner(t *testing.T) {
	t.Parallel()
	td := trustDomain(t, "td")
	tests := []struct {
		name string
		uris []string
		edit func(*x509.Certificate)
		ok   bool
	}{
		{"own ID", []string{"spiffe://td"}, nil, true},
		{"no ID", nil, nil, true},
		{"other domain", []string{"spiffe://other"}, nil, false},
		{"path", []string{"spiffe://td/a"}, nil, false},
		{"root path", []string{"spiffe://td/"}, nil, false},
		{"two", []string{"spiffe://td", "spiffe://td"}, nil, false},
		{"domain in capitals", []string{"spiffe://TD"}, nil, false},
		{"scheme in capitals", []string{"SPIFFE://td"}, nil, false},
		{"empty fragment", []string{"spiffe://td#"}, nil, false},
		{"no CA", []string{"spiffe://td"}, func(c *x509.Certificate) { c.IsCA = false }, false},
		{"no constraints", []string{"spiffe://td"}, func(c *x509.Certificate) { c.BasicConstraintsValid, c.IsCA = false, false }, false},
		{"no keyCertSign", []string{"spiffe://td"}, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			template := signerTemplate(t, "signer", tt.uris...)
			if tt.edit != nil {
				tt.edit(template)
			}
			err := identity.CheckSigner(root(t, template).cert, td)
			if (err == nil) != tt.ok || err != nil && !errors.Is(err, identity.ErrSigner) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// FuzzLeafID: no certificate makes it panic, and an accepted one has one ID with
// a path.
func FuzzLeafID(f *testing.F) {
	ca := root(f, signerTemplate(f, "root", "spiffe://td"))
	f.Add(ca.leaf(f, leafTemplate(f, "spiffe://td/a")).Raw)
	f.Add(ca.leaf(f, leafTemplate(f, "spiffe://td/a", "spiffe://td/b")).Raw)
	f.Add(ca.cert.Raw)
	f.Fuzz(func(t *testing.T, der []byte) {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		if id, err := identity.LeafID(cert); err == nil && (id.Path() == "" || len(cert.URIs) != 1 || cert.IsCA) {
			t.Fatalf("accepted as %q", id)
		}
	})
}
