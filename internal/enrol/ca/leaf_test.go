package ca_test

import (
	"bytes"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/enrol/ca"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
)

func TestLeaf(t *testing.T) {
	t.Parallel()
	cfg, h := config(t)
	a := open(t, cfg)
	h.forward(time.Hour)
	pub := publicKey()
	tmpl := ca.Template{
		ID: service("gateway/edge"), PublicKey: pub, TTL: time.Hour,
		DNSNames: []string{"api.shop.example", "*.shop.example", "*.internal", "localhost"}, IPs: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},
	}
	chain, err := a.SignX509(tmpl)
	if err != nil {
		t.Fatal(err)
	}
	if len(chain) != 2 || !chain[1].Equal(a.Intermediate()) {
		t.Fatalf("a chain of %d", len(chain))
	}
	leaf := chain[0]
	if id, err := identity.LeafID(leaf); err != nil || id != tmpl.ID {
		t.Errorf("LeafID is %q, %v", id, err)
	}
	if id, err := trusting(a, "gateway/edge").Verify(chain, h.Now()); err != nil || id != tmpl.ID {
		t.Errorf("Verify: %q, %v", id, err)
	}
	verifyStandard(t, a, chain, h.Now())
	if !pub.(*ecdsa.PublicKey).Equal(leaf.PublicKey) {
		t.Error("the key is another")
	}
	if back := h.Now().Sub(leaf.NotBefore); back < 20*time.Second || back > 30*time.Second {
		t.Errorf("it begins %s ago", back)
	}
	if left := leaf.NotAfter.Sub(h.Now()); left > time.Hour || left < time.Hour-time.Second {
		t.Errorf("it ends in %s", left)
	}
	if len(leaf.Subject.Names) != 0 || !critical(leaf, "2.5.29.17") || !critical(leaf, "2.5.29.15") || !critical(leaf, "2.5.29.19") || leaf.IsCA {
		t.Errorf("subject %v, extensions %v", leaf.Subject, leaf.Extensions)
	}
	if !bytes.Equal(leaf.AuthorityKeyId, a.Intermediate().SubjectKeyId) || len(leaf.SubjectKeyId) != 20 {
		t.Errorf("identifiers %x and %x", leaf.AuthorityKeyId, leaf.SubjectKeyId)
	}
	if diff := cmp.Diff(tmpl.DNSNames, leaf.DNSNames); diff != "" {
		t.Error(diff)
	}
	if len(leaf.IPAddresses) != 2 || leaf.VerifyHostname("x.shop.example") != nil || leaf.VerifyHostname("[::1]") != nil || leaf.VerifyHostname("other") == nil {
		t.Errorf("names %v %v", leaf.DNSNames, leaf.IPAddresses)
	}
}

// verifyStandard holds chain to what a client that knows no SPIFFE checks.
func verifyStandard(t *testing.T, a *ca.Authority, chain []*x509.Certificate, now time.Time) {
	t.Helper()
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(a.Root())
	inter.AddCert(chain[1])
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := chain[0].Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: inter, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage},
		}); err != nil {
			t.Error(err)
		}
	}
}

func TestLeafLife(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name        string
		age, ttl    time.Duration // of the authority; asked for
		back, least time.Duration // at most in the past; at least to live
		cut         bool
	}{
		{"short", time.Hour, 12 * time.Second, 7 * time.Second, 11 * time.Second, false},
		{"long", time.Hour, 6 * day, 30 * time.Second, 6*day - time.Second, false},
		{"never before its intermediate", -10 * time.Second, time.Hour, 30 * time.Second, time.Hour - time.Second, false},
		{"never past its intermediate", time.Hour, 100 * day, 30 * time.Second, 89 * day, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg, h := config(t)
			a := open(t, cfg)
			h.forward(tt.age)
			chain, err := a.SignX509(ca.Template{ID: service("web"), PublicKey: publicKey(), TTL: tt.ttl})
			if err != nil {
				t.Fatal(err)
			}
			leaf, signer := chain[0], chain[1]
			if back := h.Now().Sub(leaf.NotBefore); back < 0 || back > tt.back || leaf.NotBefore.Before(signer.NotBefore) {
				t.Errorf("begins %s ago", back)
			}
			if left := leaf.NotAfter.Sub(h.Now()); left > tt.ttl || left < tt.least || leaf.NotAfter.After(signer.NotAfter) {
				t.Errorf("ends in %s", left)
			}
			if leaf.NotAfter.Equal(signer.NotAfter) != tt.cut {
				t.Errorf("ends %s, its intermediate %s", leaf.NotAfter, signer.NotAfter)
			}
		})
	}
}

func TestSignRefuses(t *testing.T) {
	t.Parallel()
	cfg, _ := config(t)
	a := open(t, cfg)
	good := ca.Template{ID: service("web"), PublicKey: publicKey(), TTL: time.Hour}
	tests := []struct {
		name string
		edit func(*ca.Template)
	}{
		{"no ID", func(t *ca.Template) { t.ID = identity.ID{} }},
		{"trust domain's ID", func(t *ca.Template) { t.ID = cfg.TrustDomain.ID() }},
		{"other trust domain", func(t *ca.Template) { t.ID = must(identity.ParseID("spiffe://other/web")) }},
		{"no life", func(t *ca.Template) { t.TTL = 0 }},
		{"negative life", func(t *ca.Template) { t.TTL = -time.Hour }},
		{"less than a second", func(t *ca.Template) { t.TTL = time.Millisecond }},
		{"no key", func(t *ca.Template) { t.PublicKey = nil }},
		{"DNS name in capitals", func(t *ca.Template) { t.DNSNames = []string{"Shop.example"} }},
		{"empty DNS name", func(t *ca.Template) { t.DNSNames = []string{""} }},
		{"address as DNS name", func(t *ca.Template) { t.DNSNames = []string{"127.0.0.1"} }},
		{"bare wildcard", func(t *ca.Template) { t.DNSNames = []string{"*"} }},
		{"wildcard of nothing", func(t *ca.Template) { t.DNSNames = []string{"*."} }},
		{"two wildcards", func(t *ca.Template) { t.DNSNames = []string{"*.*.example"} }},
		{"wildcard of an address", func(t *ca.Template) { t.DNSNames = []string{"*.127.0.0.1"} }},
		{"wildcard inside", func(t *ca.Template) { t.DNSNames = []string{"a.*.example"} }},
		{"trailing dot", func(t *ca.Template) { t.DNSNames = []string{"shop.example."} }},
		{"NUL in a name", func(t *ca.Template) { t.DNSNames = []string{"shop.example\x00.evil.example"} }},
		{"long label", func(t *ca.Template) { t.DNSNames = []string{strings.Repeat("a", 64)} }},
		{"odd address", func(t *ca.Template) { t.IPs = []net.IP{{1, 2, 3}} }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tmpl := good
			tt.edit(&tmpl)
			chain, err := a.SignX509(tmpl)
			wantFault(t, err, fault.CertUnusable)
			if chain != nil {
				t.Error("a chain beside the error")
			}
		})
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	cfg, h := config(t)
	a := open(t, cfg)
	edPub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	rsa2048 := &must(rsa.GenerateKey(rand.Reader, 2048)).PublicKey
	modulus := func(bits uint) *rsa.PublicKey {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		return &rsa.PublicKey{N: n.SetBit(n, 0, 1), E: 65537}
	}
	tests := []struct {
		name string
		key  crypto.PublicKey
		ok   bool
	}{
		{"P-256", publicKey(), true},
		{"P-384", must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)).Public(), true},
		{"Ed25519", edPub, true},
		{"RSA 2048", rsa2048, true},
		{"P-224", must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)).Public(), false},
		{"P-521", must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)).Public(), false},
		//lint:ignore SA1019 a point off the curve can be made in no other way
		{"off the curve", &ecdsa.PublicKey{Curve: elliptic.P256(), X: big.NewInt(1), Y: big.NewInt(1)}, false},
		{"no curve", &ecdsa.PublicKey{}, false},
		{"RSA 2047", modulus(2047), false},
		{"RSA 16384", modulus(16384), false},
		{"RSA with exponent 1", &rsa.PublicKey{N: rsa2048.N, E: 1}, false},
		{"RSA with an even exponent", &rsa.PublicKey{N: rsa2048.N, E: 65536}, false},
		{"short Ed25519", edPub[:31], false},
		{"X25519", must(ecdh.X25519().GenerateKey(rand.Reader)).PublicKey(), false},
		{"private", must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)), false},
		{"nothing", nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			chain, err := a.SignX509(ca.Template{ID: service("web"), PublicKey: tt.key, TTL: time.Hour})
			if (err == nil) != tt.ok || !tt.ok && !errors.Is(err, ca.ErrKey) {
				t.Fatalf("got %v", err)
			}
			if tt.ok {
				verifyStandard(t, a, chain, h.Now())
			}
		})
	}
}

func TestSerialsDiffer(t *testing.T) {
	t.Parallel()
	cfg, _ := config(t)
	a := open(t, cfg)
	seen := map[string]bool{}
	bits := 0
	for range 50 {
		n := sign(t, a)[0].SerialNumber
		seen[n.String()] = true
		bits = max(bits, n.BitLen())
	}
	if len(seen) != 50 || bits < 120 || bits > 128 {
		t.Errorf("%d serial numbers of at most %d bits", len(seen), bits)
	}
}

func TestClockOfARunningAuthority(t *testing.T) {
	t.Parallel()
	cfg, h := config(t)
	a := open(t, cfg)
	h.forward(-time.Hour)
	_, err := a.SignX509(ca.Template{ID: service("web"), PublicKey: publicKey(), TTL: time.Hour})
	wantFault(t, err, fault.ClockWrong)
	_, _, err = a.SignJWT(service("web"), []string{"x"}, time.Minute)
	wantFault(t, err, fault.ClockWrong)
}

func TestSignJWT(t *testing.T) {
	t.Parallel()
	cfg, h := config(t)
	a := open(t, cfg)
	token, expires, err := a.SignJWT(service("web"), []string{"orders"}, 5*time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if left := expires.Sub(h.Now()); left > 5*time.Minute || left < 5*time.Minute-time.Second || expires.Location() != time.UTC {
		t.Errorf("ends in %s, %s", left, expires.Location())
	}
	bundle := func(td identity.TrustDomain) *identity.Bundle {
		if td != cfg.TrustDomain {
			return nil
		}
		return a.Bundle()
	}
	id, claims, err := jose.VerifySVID(token, "orders", bundle, h.Now())
	if err != nil || id != service("web") || claims["exp"] != float64(expires.Unix()) {
		t.Errorf("got %q, %v, %v", id, claims, err)
	}
	if _, _, err := jose.VerifySVID(token, "orders", bundle, expires); !errors.Is(err, jose.ErrExpired) {
		t.Errorf("at its end: %v", err)
	}
	for name, id := range map[string]identity.ID{
		"none": {}, "domain": cfg.TrustDomain.ID(), "other": must(identity.ParseID("spiffe://other/web")),
	} {
		if token, _, err := a.SignJWT(id, []string{"x"}, time.Minute); err == nil || token != "" {
			t.Errorf("%s: %q, %v", name, token, err)
		}
	}
	if _, _, err := a.SignJWT(service("web"), []string{"x"}, 0); err == nil {
		t.Error("a token without a life")
	}
}

func BenchmarkSignX509(b *testing.B) {
	cfg, _ := config(b)
	a := open(b, cfg)
	pub := publicKey()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.SignX509(ca.Template{ID: service("web"), PublicKey: pub, TTL: time.Hour}); err != nil {
			b.Fatal(err)
		}
	}
}
