package identity_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/identity"
)

type chain = []*x509.Certificate

func TestTrustVerify(t *testing.T) {
	t.Parallel()
	const a = "spiffe://td/a"
	ca := root(t, signerTemplate(t, "root", "spiffe://td"))
	inter := ca.intermediate(t, signerTemplate(t, "intermediate", "spiffe://td"))
	foreign := root(t, signerTemplate(t, "root", "spiffe://td")) // the same names, another key
	foreignInter := foreign.intermediate(t, signerTemplate(t, "intermediate", "spiffe://td"))
	other := ca.intermediate(t, signerTemplate(t, "intermediate", "spiffe://other"))
	leafSigner := ca.leaf(t, leafTemplate(t, "spiffe://td/b"))
	leafKey := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	leafAsCA := authority{sign(t, leafTemplate(t, "spiffe://td/b"), ca.cert, leafKey.Public(), ca.key), leafKey}
	short := signerTemplate(t, "short", "spiffe://td")
	short.NotAfter = noon().Add(-time.Minute)
	ended := ca.intermediate(t, short)
	depth := inter
	deep := chain{nil}
	for range 6 {
		depth = depth.intermediate(t, signerTemplate(t, "deep", "spiffe://td"))
		deep = append(deep, depth.cert)
	}
	deep[0] = depth.leaf(t, leafTemplate(t, a))
	good := inter.leaf(t, leafTemplate(t, a))
	forged := foreignInter.leaf(t, leafTemplate(t, a))

	tests := []struct {
		name  string
		chain chain
		at    time.Duration // from noon
		want  error
	}{
		{"good", chain{good, inter.cert}, 0, nil},
		{"root sent along", chain{good, inter.cert, ca.cert}, 0, nil},
		{"signed by the root", chain{ca.leaf(t, leafTemplate(t, a))}, 0, nil},
		{"last second", chain{good, inter.cert}, time.Hour, nil},
		{"nothing", nil, 0, identity.ErrNoCredential},
		{"expired", chain{good, inter.cert}, time.Hour + time.Second, identity.ErrExpired},
		{"not yet valid", chain{good, inter.cert}, -time.Hour - time.Second, identity.ErrNotYetValid},
		{"intermediate missing", chain{good}, 0, identity.ErrChain},
		{"foreign CA of the same name", chain{forged, foreignInter.cert, foreign.cert}, 0, identity.ErrChain},
		// OpenZiti GHSA-mrpr-756c-xm47: any certificate of the chain was enough.
		{"valid filler behind a forged leaf", chain{forged, good, inter.cert, ca.cert}, 0, identity.ErrChain},
		{"valid filler before the forger", chain{forged, inter.cert, foreignInter.cert}, 0, identity.ErrChain},
		{"signed by a leaf", chain{leafAsCA.leaf(t, leafTemplate(t, a)), leafAsCA.cert, ca.cert}, 0, identity.ErrChain},
		{"intermediate of another trust domain", chain{other.leaf(t, leafTemplate(t, a)), other.cert}, 0, identity.ErrChain},
		{"intermediate has ended", chain{ended.leaf(t, leafTemplate(t, a)), ended.cert}, 0, identity.ErrChain},
		{"other trust domain", chain{inter.leaf(t, leafTemplate(t, "spiffe://other/a")), inter.cert}, 0, identity.ErrUntrustedDomain},
		{"too long", deep, 0, identity.ErrChainTooLong},
		{"two URIs", chain{inter.leaf(t, leafTemplate(t, a, "spiffe://td/b")), inter.cert}, 0, identity.ErrURICount},
		{"percent-encoding", chain{inter.leaf(t, leafTemplate(t, "spiffe://td/%61")), inter.cert}, 0, identity.ErrPath},
		{"the CA itself", chain{inter.cert, ca.cert}, 0, identity.ErrLeafNoPath},
		{"not a member", chain{leafSigner}, 0, identity.ErrNotMember},
	}
	trust := trusting(t, "td", chain{ca.cert}, a)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			id, err := trust.Verify(tt.chain, noon().Add(tt.at))
			if !errors.Is(err, tt.want) || (err == nil) != (tt.want == nil) {
				t.Fatalf("got %v, want %v", err, tt.want)
			}
			if err == nil && id.String() != a {
				t.Errorf("got %q", id)
			}
		})
	}
}

// A certificate among the roots that no CA is must not vouch for itself.
func TestLeafAmongTheRoots(t *testing.T) {
	t.Parallel()
	self := root(t, leafTemplate(t, "spiffe://td/a")).cert
	trust := trusting(t, "td", chain{self}, "spiffe://td/a")
	if _, err := trust.Verify(chain{self}, noon()); !errors.Is(err, identity.ErrChain) {
		t.Errorf("got %v", err)
	}
}

func TestTrustOfNothing(t *testing.T) {
	t.Parallel()
	ca := root(t, signerTemplate(t, "root", "spiffe://td"))
	leaf := ca.leaf(t, leafTemplate(t, "spiffe://td/a"))
	tests := []struct {
		name  string
		trust *identity.Trust
		want  error
	}{
		{"zero trust", &identity.Trust{}, identity.ErrUntrustedDomain},
		{"empty bundle", trusting(t, "td", nil, "spiffe://td/a"), identity.ErrChain},
		{"bundle of another name", &identity.Trust{Bundles: map[identity.TrustDomain]*identity.Bundle{
			trustDomain(t, "td"): {TrustDomain: trustDomain(t, "other"), Roots: chain{ca.cert}},
		}}, identity.ErrUntrustedDomain},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if _, err := tt.trust.Verify(chain{leaf}, noon()); !errors.Is(err, tt.want) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
		})
	}
}

func TestAdmit(t *testing.T) {
	t.Parallel()
	member, banned, stranger := must(identity.ParseID("spiffe://td/a")), must(identity.ParseID("spiffe://td/b")), must(identity.ParseID("spiffe://td/c"))
	trust := &identity.Trust{
		Members: map[identity.ID]bool{member: true, banned: true},
		Banned:  map[identity.ID]bool{banned: true},
	}
	if err := trust.Admit(member); err != nil {
		t.Error(err)
	}
	if err := trust.Admit(banned); !errors.Is(err, identity.ErrBanned) {
		t.Errorf("banned: %v", err)
	}
	if err := trust.Admit(stranger); !errors.Is(err, identity.ErrNotMember) {
		t.Errorf("stranger: %v", err)
	}
	if err := trust.Admit(identity.ID{}); !errors.Is(err, identity.ErrNotMember) {
		t.Errorf("nobody: %v", err)
	}
}

func TestNewCredential(t *testing.T) {
	t.Parallel()
	ca := root(t, signerTemplate(t, "root", "spiffe://td"))
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	leaf := sign(t, leafTemplate(t, "spiffe://td/a"), ca.cert, key.Public(), ca.key)
	c, err := identity.NewCredential(chain{leaf, ca.cert}, key)
	if err != nil {
		t.Fatal(err)
	}
	if c.ID.String() != "spiffe://td/a" || len(c.Certificate().Certificate) != 2 || c.Certificate().Leaf != leaf ||
		!c.NotAfter().Equal(noon().Add(time.Hour)) || !c.NotBefore().Equal(noon().Add(-time.Hour)) || c.Serial() != identity.Serial(leaf) {
		t.Errorf("got %+v", c)
	}
	if _, err := identity.NewCredential(chain{leaf}, ca.key); err == nil {
		t.Error("another key was accepted")
	}
	if _, err := identity.NewCredential(chain{ca.cert}, ca.key); !errors.Is(err, identity.ErrLeafNoPath) {
		t.Errorf("a CA as a leaf: %v", err)
	}
	if _, err := identity.NewCredential(nil, key); !errors.Is(err, identity.ErrNoCredential) {
		t.Errorf("no chain: %v", err)
	}
	if _, err := identity.NewCredential(chain{leaf}, nil); !errors.Is(err, identity.ErrNoCredential) {
		t.Errorf("no key: %v", err)
	}
}

func TestCaller(t *testing.T) {
	t.Parallel()
	c := identity.Caller{KeyID: "k", Scopes: []string{"a", "b"}}
	if c.IsZero() || !(identity.Caller{}).IsZero() {
		t.Error("IsZero")
	}
	if !c.HasScopes(nil) || !c.HasScopes([]string{"b", "a"}) || c.HasScopes([]string{"a", "c"}) {
		t.Error("HasScopes")
	}
	// Each credential stands for itself: a key's scopes are none of a token's.
	c = identity.Caller{KeyID: "k", Scopes: []string{"a"}, Token: &identity.Token{Scopes: []string{"b"}}}
	if c.HasScopes([]string{"b"}) || c.Token.HasScopes([]string{"a"}) || !c.Token.HasScopes([]string{"b"}) || !c.Token.HasScopes(nil) {
		t.Error("the scopes of two credentials are taken together")
	}
	if (identity.Caller{Token: &identity.Token{}}).IsZero() {
		t.Error("a bearer of a token is nobody")
	}
}

func BenchmarkTrustVerify(b *testing.B) {
	ca := root(b, signerTemplate(b, "root", "spiffe://td"))
	inter := ca.intermediate(b, signerTemplate(b, "intermediate", "spiffe://td"))
	peer := chain{inter.leaf(b, leafTemplate(b, "spiffe://td/a")), inter.cert}
	trust := trusting(b, "td", chain{ca.cert}, "spiffe://td/a")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := trust.Verify(peer, noon()); err != nil {
			b.Fatal(err)
		}
	}
}
