package xtest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/identity"
)

// An Authority signs for one trust domain, probes too.
type Authority struct {
	Root *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority is one for the trust domain called name.
func NewAuthority(tb testing.TB, name string) *Authority {
	tb.Helper()
	a := &Authority{key: Key(tb)}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "root of " + name}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
		URIs: []*url.URL{{Scheme: "spiffe", Host: name}},
	}
	a.Root = a.sign(tb, tmpl, tmpl, a.key.Public())
	return a
}

// Key is a new key.
func Key(tb testing.TB) *ecdsa.PrivateKey {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func (a *Authority) sign(tb testing.TB, tmpl, parent *x509.Certificate, pub crypto.PublicKey) *x509.Certificate {
	tb.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, a.key)
	if err != nil {
		tb.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		tb.Fatal(err)
	}
	return cert
}

// leaf is a template that nothing is wrong with.
func leaf(id identity.ID) *x509.Certificate {
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	return &x509.Certificate{
		SerialNumber: serial, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(5 * time.Minute),
		KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:        []*url.URL{{Scheme: "spiffe", Host: id.TrustDomain().String(), Path: id.Path()}},
	}
}

// Credential is a good one of id.
func (a *Authority) Credential(tb testing.TB, id identity.ID) *identity.Credential {
	tb.Helper()
	key := Key(tb)
	c, err := identity.NewCredential([]*x509.Certificate{a.sign(tb, leaf(id), a.Root, key.Public())}, key)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// Certificate is a good one of id, as crypto/tls wants it.
func (a *Authority) Certificate(tb testing.TB, id identity.ID) *tls.Certificate {
	tb.Helper()
	return a.Credential(tb, id).Certificate()
}

// Probe signs the certificate for probes that csr asks for.
func (a *Authority) Probe(tb testing.TB, id identity.ID, flaw string, csr []byte) []*x509.Certificate {
	tb.Helper()
	req, err := x509.ParseCertificateRequest(csr)
	if err != nil {
		tb.Fatal(err)
	}
	tmpl := leaf(id)
	tmpl.ExtraExtensions = []pkix.Extension{{Id: identity.OIDProbe(), Critical: true, Value: asn1.NullBytes}}
	switch flaw {
	case "expired":
		tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(-10*time.Minute), time.Now().Add(-5*time.Minute)
	case "not_yet_valid":
		tmpl.NotBefore, tmpl.NotAfter = time.Now().Add(5*time.Minute), time.Now().Add(10*time.Minute)
	case "wrong_usage":
		tmpl.ExtKeyUsage = tmpl.ExtKeyUsage[:1]
	case "two_names":
		tmpl.URIs = append(tmpl.URIs, &url.URL{Scheme: "spiffe", Host: id.TrustDomain().String(), Path: "/second"})
	case "":
	default:
		tb.Fatalf("the flaw %q is not known", flaw)
	}
	return []*x509.Certificate{a.sign(tb, tmpl, a.Root, req.PublicKey)}
}

// HostAddress is an IPv4 address of this machine that is not loopback; false where it
// has none.
func HostAddress(tb testing.TB) (ip string, ok bool) {
	tb.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		tb.Fatal(err)
	}
	for _, a := range addrs {
		if n, is := a.(*net.IPNet); is && !n.IP.IsLoopback() && !n.IP.IsLinkLocalUnicast() && n.IP.To4() != nil {
			return n.IP.String(), true
		}
	}
	return "", false
}
