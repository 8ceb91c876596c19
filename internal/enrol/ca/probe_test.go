package ca_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"net"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/enrol/ca"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
)

// Each flaw is what a verifier of probes finds, and the only thing: at another time, or
// for another use, the certificate is good. Everywhere else each of them is refused for
// being a probe's, and by those who know nothing of Parley too.
func TestSignProbe(t *testing.T) {
	t.Parallel()
	cfg, h := config(t)
	a := open(t, cfg)
	h.forward(time.Hour)
	trust := trusting(a, "web")
	roots, inter := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(a.Root())
	inter.AddCert(a.Intermediate())
	serials := map[string]bool{}
	for _, tt := range []struct {
		flaw  ca.Flaw
		want  error
		at    time.Duration    // from now: when its time is no flaw
		usage x509.ExtKeyUsage // that x509 finds
		from  time.Duration    // from now: when it begins
		to    time.Duration    // and ends
	}{
		{flaw: ca.NoFlaw, usage: x509.ExtKeyUsageClientAuth, from: -29 * time.Second, to: ca.ProbeTTL},
		{flaw: ca.Expired, want: identity.ErrExpired, at: -ca.ProbeTTL - time.Minute, usage: x509.ExtKeyUsageClientAuth, from: -2 * ca.ProbeTTL, to: -ca.ProbeTTL},
		{flaw: ca.NotYetValid, want: identity.ErrNotYetValid, at: ca.ProbeTTL + time.Minute, usage: x509.ExtKeyUsageClientAuth, from: ca.ProbeTTL, to: 2 * ca.ProbeTTL},
		{flaw: ca.WrongUsage, want: identity.ErrLeafEKU, usage: x509.ExtKeyUsageServerAuth, from: -29 * time.Second, to: ca.ProbeTTL},
		{flaw: ca.TwoNames, want: identity.ErrURICount, usage: x509.ExtKeyUsageClientAuth, from: -29 * time.Second, to: ca.ProbeTTL},
	} {
		t.Run(string(tt.flaw), func(t *testing.T) {
			pub := publicKey()
			chain, err := a.SignProbe(ca.ProbeTemplate{ID: service("web"), Second: service("parley/stranger"), PublicKey: pub, Flaw: tt.flaw})
			if err != nil {
				t.Fatal(err)
			}
			if len(chain) != 2 || !chain[1].Equal(a.Intermediate()) {
				t.Fatalf("a chain of %d", len(chain))
			}
			leaf, now := chain[0], h.Now()
			if id, err := trust.VerifyProbe(chain, now); !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) || err == nil && id != service("web") {
				t.Errorf("as a probe: %q, %v, want %v", id, err, tt.want)
			}
			if _, err := trust.Verify(chain, now); !errors.Is(err, identity.ErrProbe) {
				t.Errorf("elsewhere: %v", err)
			}
			options := x509.VerifyOptions{Roots: roots, Intermediates: inter, CurrentTime: now.Add(tt.at), KeyUsages: []x509.ExtKeyUsage{tt.usage}}
			var unhandled x509.UnhandledCriticalExtension
			if _, err := leaf.Verify(options); !errors.As(err, &unhandled) {
				t.Errorf("by the standard library: %v", err)
			}
			known := *leaf
			known.UnhandledCriticalExtensions = nil
			if _, err := known.Verify(options); err != nil {
				t.Errorf("there is more wrong with it: %v", err)
			}
			if tt.flaw == ca.WrongUsage {
				options.KeyUsages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
				if _, err := known.Verify(options); err == nil {
					t.Error("it is a client's")
				}
			}
			if from, to := leaf.NotBefore.Sub(now.Truncate(time.Second)), leaf.NotAfter.Sub(now.Truncate(time.Second)); from != tt.from || to != tt.to {
				t.Errorf("it lives from %s to %s", from, to)
			}
			if !pub.(*ecdsa.PublicKey).Equal(leaf.PublicKey) || len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.Subject.Names) > 0 || leaf.IsCA {
				t.Errorf("it says %v %v %v", leaf.DNSNames, leaf.IPAddresses, leaf.Subject)
			}
			if !critical(leaf, identity.OIDProbe().String()) || leaf.URIs[0].String() != "spiffe://shop.example/web" {
				t.Errorf("it says %v, %v", leaf.URIs, leaf.Extensions)
			}
			if s := identity.Serial(leaf); serials[s] {
				t.Errorf("the serial number %s is there twice", s)
			} else {
				serials[s] = true
			}
		})
	}
}

func TestSignProbeRefuses(t *testing.T) {
	t.Parallel()
	cfg, _ := config(t)
	a := open(t, cfg)
	for name, edit := range map[string]func(*ca.ProbeTemplate){
		"unknown flaw":       func(t *ca.ProbeTemplate) { t.Flaw = "signed_by_nobody" },
		"no ID":              func(t *ca.ProbeTemplate) { t.ID = identity.ID{} },
		"trust domain's ID":  func(t *ca.ProbeTemplate) { t.ID = cfg.TrustDomain.ID() },
		"other trust domain": func(t *ca.ProbeTemplate) { t.ID = must(identity.ParseID("spiffe://other/web")) },
		"no key":             func(t *ca.ProbeTemplate) { t.PublicKey = nil },
		"weak key": func(t *ca.ProbeTemplate) {
			t.PublicKey = must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader)).Public()
		},
		"no second name":      func(t *ca.ProbeTemplate) { t.Flaw = ca.TwoNames },
		"the same name twice": func(t *ca.ProbeTemplate) { t.Flaw, t.Second = ca.TwoNames, t.ID },
		"second one elsewhere": func(t *ca.ProbeTemplate) {
			t.Flaw, t.Second = ca.TwoNames, must(identity.ParseID("spiffe://other/web"))
		},
		"second one of a CA": func(t *ca.ProbeTemplate) { t.Flaw, t.Second = ca.TwoNames, cfg.TrustDomain.ID() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tmpl := ca.ProbeTemplate{ID: service("web"), PublicKey: publicKey()}
			edit(&tmpl)
			chain, err := a.SignProbe(tmpl)
			wantFault(t, err, fault.CertUnusable)
			if chain != nil {
				t.Error("a chain beside the error")
			}
		})
	}
}

// Each of these is what a defect of the authority would sign; lint must see it.
func TestLintProbe(t *testing.T) {
	t.Parallel()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	parent, now := issuer(t, key), newHand().Now()
	second := "spiffe://shop.example/parley/stranger"
	for _, tt := range []struct {
		name string
		flaw ca.Flaw
		edit func(*x509.Certificate)
		ok   bool
	}{
		{"good", ca.NoFlaw, func(*x509.Certificate) {}, true},
		{"no extension", ca.NoFlaw, func(c *x509.Certificate) { c.ExtraExtensions = nil }, false},
		{"no critical extension", ca.NoFlaw, func(c *x509.Certificate) { c.ExtraExtensions[0].Critical = false }, false},
		{"another extension", ca.NoFlaw, func(c *x509.Certificate) {
			c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3}, Value: asn1.NullBytes})
		}, false},
		{"CA", ca.NoFlaw, func(c *x509.Certificate) { c.IsCA = true }, false},
		{"signs", ca.NoFlaw, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }, false},
		{"no basic constraints", ca.NoFlaw, func(c *x509.Certificate) { c.BasicConstraintsValid = false }, false},
		{"other name", ca.NoFlaw, func(c *x509.Certificate) { c.URIs = uris("spiffe://shop.example/orders") }, false},
		{"no name", ca.NoFlaw, func(c *x509.Certificate) { c.URIs = nil }, false},
		{"DNS name", ca.NoFlaw, func(c *x509.Certificate) { c.DNSNames = []string{"a.example"} }, false},
		{"address", ca.NoFlaw, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv6loopback} }, false},
		{"subject", ca.NoFlaw, func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: "web"} }, false},
		{"lives too long", ca.NoFlaw, func(c *x509.Certificate) { c.NotAfter = now.Add(time.Hour) }, false},
		{"begins too early", ca.NoFlaw, func(c *x509.Certificate) { c.NotBefore = now.Add(-time.Hour) }, false},
		{"long ago", ca.Expired, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-3*time.Minute), now.Add(-time.Minute) }, true},
		{"expired, unasked", ca.NoFlaw, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(-3*time.Minute), now.Add(-time.Minute) }, false},
		{"not expired", ca.Expired, func(*x509.Certificate) {}, false},
		{"later", ca.NotYetValid, func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(time.Minute), now.Add(3*time.Minute) }, true},
		{"later, unasked", ca.WrongUsage, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter, c.ExtKeyUsage = now.Add(time.Minute), now.Add(3*time.Minute), c.ExtKeyUsage[:1]
		}, false},
		{"valid already", ca.NotYetValid, func(*x509.Certificate) {}, false},
		{"much later", ca.NotYetValid, func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = now.Add(time.Hour), now.Add(time.Hour+time.Minute)
		}, false},
		{"no client's", ca.WrongUsage, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, true},
		{"no client's, unasked", ca.NoFlaw, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }, false},
		{"a client's", ca.WrongUsage, func(*x509.Certificate) {}, false},
		{"two names", ca.TwoNames, func(c *x509.Certificate) { c.URIs = append(c.URIs, uris(second)...) }, true},
		{"two names, unasked", ca.NoFlaw, func(c *x509.Certificate) { c.URIs = append(c.URIs, uris(second)...) }, false},
		{"another second name", ca.TwoNames, func(c *x509.Certificate) { c.URIs = append(c.URIs, uris("spiffe://shop.example/orders")...) }, false},
		{"one name", ca.TwoNames, func(*x509.Certificate) {}, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			c := &x509.Certificate{
				SerialNumber: big.NewInt(7), NotBefore: now.Add(-time.Second), NotAfter: now.Add(time.Minute),
				URIs: uris("spiffe://shop.example/web"), SubjectKeyId: []byte{1},
				KeyUsage: x509.KeyUsageDigitalSignature, BasicConstraintsValid: true,
				ExtKeyUsage:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
				ExtraExtensions: []pkix.Extension{{Id: identity.OIDProbe(), Critical: true, Value: asn1.NullBytes}},
			}
			tt.edit(c)
			leaf := must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, c, parent, key.Public(), key))))
			want := ca.ProbeTemplate{ID: service("web"), Second: must(identity.ParseID(second)), PublicKey: key.Public(), Flaw: tt.flaw}
			if err := ca.LintProbe(leaf, parent, want, now); (err == nil) != tt.ok {
				t.Errorf("got %v", err)
			}
			want.PublicKey = publicKey()
			if err := ca.LintProbe(leaf, parent, want, now); err == nil {
				t.Error("another key is not seen")
			}
		})
	}
}
