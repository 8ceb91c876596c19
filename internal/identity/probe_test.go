package identity_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/identity"
)

// extension is one without a value that says anything.
func extension(id asn1.ObjectIdentifier, critical bool) pkix.Extension {
	return pkix.Extension{Id: id, Critical: critical, Value: asn1.NullBytes}
}

// probeTemplate is a leaf that is for probes, if that is among extra.
func probeTemplate(t testing.TB, uri string, extra ...pkix.Extension) *x509.Certificate {
	c := leafTemplate(t, uri)
	c.ExtraExtensions = append(c.ExtraExtensions, extra...)
	return c
}

// A certificate is for probes or it is not: none is good on both paths, and one that
// is half for probes is good on neither.
func TestVerifyProbe(t *testing.T) {
	t.Parallel()
	const a, banned = "spiffe://td/a", "spiffe://td/banned"
	ca := root(t, signerTemplate(t, "root", "spiffe://td"))
	inter := ca.intermediate(t, signerTemplate(t, "intermediate", "spiffe://td"))
	lookalike := root(t, signerTemplate(t, "root", "spiffe://td"))
	probe, unknown := extension(identity.OIDProbe(), true), extension(asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 32473, 7, 2}, true)
	marked := signerTemplate(t, "marked", "spiffe://td")
	marked.ExtraExtensions = append(marked.ExtraExtensions, probe)
	markedCA := ca.intermediate(t, marked)
	leaf := func(uri string, extra ...pkix.Extension) chain {
		return chain{inter.leaf(t, probeTemplate(t, uri, extra...)), inter.cert}
	}
	twoNames := leafTemplate(t, a, "spiffe://td/b")
	twoNames.ExtraExtensions = append(twoNames.ExtraExtensions, probe)
	clientless := probeTemplate(t, a, probe)
	clientless.ExtKeyUsage = clientless.ExtKeyUsage[:1]

	trust := trusting(t, "td", chain{ca.cert}, a, banned)
	trust.Banned[must(identity.ParseID(banned))] = true
	for _, tt := range []struct {
		name            string
		chain           chain
		at              time.Duration // from noon
		asProbe, asLeaf error
	}{
		{"for probes", leaf(a, probe), 0, nil, identity.ErrProbe},
		{"of a service", leaf(a), 0, identity.ErrNoProbe, nil},
		{"nothing", nil, 0, identity.ErrNoCredential, identity.ErrNoCredential},
		{"not critical", leaf(a, extension(identity.OIDProbe(), false)), 0, identity.ErrNoProbe, identity.ErrProbe},
		{"another critical extension", leaf(a, unknown), 0, identity.ErrNoProbe, identity.ErrChain},
		{"another one beside it", leaf(a, probe, unknown), 0, identity.ErrChain, identity.ErrProbe},
		{"another one before it", leaf(a, unknown, probe), 0, identity.ErrChain, identity.ErrProbe},
		{"not critical, and another one that is", leaf(a, extension(identity.OIDProbe(), false), unknown), 0, identity.ErrNoProbe, identity.ErrProbe},
		{"expired", leaf(a, probe), time.Hour + time.Second, identity.ErrExpired, identity.ErrProbe},
		{"not yet valid", leaf(a, probe), -time.Hour - time.Second, identity.ErrNotYetValid, identity.ErrProbe},
		{"banned", leaf(banned, probe), 0, identity.ErrBanned, identity.ErrProbe},
		{"no member", leaf("spiffe://td/b", probe), 0, identity.ErrNotMember, identity.ErrProbe},
		{"two names", chain{inter.leaf(t, twoNames), inter.cert}, 0, identity.ErrURICount, identity.ErrProbe},
		{"no client's", chain{inter.leaf(t, clientless), inter.cert}, 0, identity.ErrLeafEKU, identity.ErrProbe},
		{"foreign trust domain", leaf("spiffe://other/a", probe), 0, identity.ErrUntrustedDomain, identity.ErrProbe},
		{"look-alike CA", chain{lookalike.leaf(t, probeTemplate(t, a, probe)), lookalike.cert}, 0, identity.ErrChain, identity.ErrProbe},
		{"behind one of a service", append(leaf(a), leaf(a, probe)...), 0, identity.ErrNoProbe, nil},
		{"of a CA that is for probes", chain{markedCA.leaf(t, probeTemplate(t, a, probe)), markedCA.cert}, 0, identity.ErrChain, identity.ErrProbe},
		{"for no probes, of such a CA", chain{markedCA.leaf(t, leafTemplate(t, a)), markedCA.cert}, 0, identity.ErrNoProbe, identity.ErrChain},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			for path, verify := range map[string]struct {
				by   func(chain, time.Time) (identity.ID, error)
				want error
			}{"probe": {trust.VerifyProbe, tt.asProbe}, "leaf": {trust.Verify, tt.asLeaf}} {
				id, err := verify.by(tt.chain, noon().Add(tt.at))
				if !errors.Is(err, verify.want) || (err == nil) != (verify.want == nil) {
					t.Errorf("as %s: got %v, want %v", path, err, verify.want)
				}
				if err == nil && id.String() != a {
					t.Errorf("as %s: got %q", path, id)
				}
			}
		})
	}
}

// A refusal's record names whom the certificate claims to be.
func TestRefusedProbeIsNamed(t *testing.T) {
	t.Parallel()
	ca := root(t, signerTemplate(t, "root", "spiffe://td"))
	trust := trusting(t, "td", chain{ca.cert}, "spiffe://td/a")
	for name, refuse := range map[string]func() (identity.ID, error){
		"probe": func() (identity.ID, error) {
			return trust.Verify(chain{ca.leaf(t, probeTemplate(t, "spiffe://td/a", extension(identity.OIDProbe(), true)))}, noon())
		},
		"service": func() (identity.ID, error) {
			return trust.VerifyProbe(chain{ca.leaf(t, leafTemplate(t, "spiffe://td/a"))}, noon())
		},
	} {
		if id, err := refuse(); err == nil || id.String() != "spiffe://td/a" {
			t.Errorf("%s: got %q, %v", name, id, err)
		}
	}
}

// The chain is crypto/tls's and shared by the connections of a session: looking at it
// as a probe leaves it, and its backing array, a certificate that is refused elsewhere.
func TestVerifyProbeChangesNothing(t *testing.T) {
	t.Parallel()
	ca := root(t, signerTemplate(t, "root", "spiffe://td"))
	inter := ca.intermediate(t, signerTemplate(t, "intermediate", "spiffe://td"))
	unknown := asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 32473, 7, 2}
	leaf := inter.leaf(t, probeTemplate(t, "spiffe://td/a", extension(identity.OIDProbe(), true), extension(unknown, true)))
	spare := append(make(chain, 0, 8), leaf, inter.cert, ca.cert)
	presented, before := spare[:2], *leaf
	before.UnhandledCriticalExtensions = slices.Clone(leaf.UnhandledCriticalExtensions)
	trust := trusting(t, "td", chain{ca.cert}, "spiffe://td/a")
	_, _ = trust.VerifyProbe(presented, noon())
	if !reflect.DeepEqual(before, *leaf) {
		t.Errorf("the leaf has now %v unhandled, and had %v", leaf.UnhandledCriticalExtensions, before.UnhandledCriticalExtensions)
	}
	if presented[0] != leaf || presented[1] != inter.cert || spare[2] != ca.cert {
		t.Error("the presented chain is another")
	}
	if !identity.IsProbe(leaf) {
		t.Error("it is no certificate for probes any more")
	}
}

func TestNamesForProbes(t *testing.T) {
	t.Parallel()
	td := trustDomain(t, "td")
	verify, stranger := must(identity.VerifyID(td)), must(identity.StrangerID(td))
	if verify.String() != "spiffe://td/parley/verify" || stranger.String() != "spiffe://td/parley/stranger" {
		t.Errorf("got %s and %s", verify, stranger)
	}
}

// FuzzVerifyProbe: no certificate makes it panic, and what the path of probes takes as
// the fault of being one is what every other path refuses for it.
func FuzzVerifyProbe(f *testing.F) {
	ca := root(f, signerTemplate(f, "root", "spiffe://td"))
	for _, extra := range [][]pkix.Extension{
		nil,
		{extension(identity.OIDProbe(), true)},
		{extension(identity.OIDProbe(), false)},
		{extension(identity.OIDProbe(), true), extension(asn1.ObjectIdentifier{1, 2, 3}, true)},
	} {
		f.Add(ca.leaf(f, probeTemplate(f, "spiffe://td/a", extra...)).Raw)
	}
	f.Add(ca.cert.Raw)
	trust := &identity.Trust{AnyMember: true}
	f.Fuzz(func(t *testing.T, der []byte) {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return
		}
		_, asProbe := trust.VerifyProbe(chain{cert}, noon())
		_, asLeaf := trust.Verify(chain{cert}, noon())
		if asProbe == nil || asLeaf == nil {
			t.Fatal("accepted by a trust without a bundle")
		}
		if !errors.Is(asProbe, identity.ErrNoProbe) && !errors.Is(asLeaf, identity.ErrProbe) {
			t.Fatalf("as a probe %v, as a leaf %v", asProbe, asLeaf)
		}
	})
}
