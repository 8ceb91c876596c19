package ca_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/enrol/ca"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
	"github.com/parleymesh/parley/internal/keys"
)

const day = 24 * time.Hour

// A hand is a clock that is set by the test.
type hand struct {
	clock.System
	at atomic.Int64
}

func newHand() *hand {
	h := new(hand)
	h.at.Store(time.Date(2026, 3, 1, 12, 0, 0, 700e6, time.UTC).UnixNano())
	return h
}

func (h *hand) Now() time.Time          { return time.Unix(0, h.at.Load()) }
func (h *hand) forward(d time.Duration) { h.at.Add(int64(d)) }

// config is that of an authority in a new folder.
func config(t testing.TB) (ca.Config, *hand) {
	t.Helper()
	dir := t.TempDir()
	m, _, err := keys.OpenMaster(filepath.Join(dir, "master.key"))
	if err != nil {
		t.Fatal(err)
	}
	h := newHand()
	return ca.Config{
		Dir: filepath.Join(dir, "ca"), TrustDomain: must(identity.ParseTrustDomain("shop.example")),
		Master: m, Clock: h, Logger: slog.New(slog.DiscardHandler),
	}, h
}

func open(t testing.TB, cfg ca.Config) *ca.Authority {
	t.Helper()
	a, _, err := ca.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func service(name string) identity.ID { return must(identity.ParseID("spiffe://shop.example/" + name)) }

func publicKey() crypto.PublicKey {
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)).Public()
}

func wantFault(t testing.TB, err error, code fault.Code) {
	t.Helper()
	var f *fault.Fault
	if !errors.As(err, &f) || f.Code != code {
		t.Fatalf("got %v, want a fault %s", err, code)
	}
	if code != fault.Internal && code != fault.CertUnusable && f.Hint == "" {
		t.Errorf("%v has no hint", err)
	}
}

func TestOpenCreatesOnce(t *testing.T) {
	t.Parallel()
	cfg, h := config(t)
	var made []string
	cfg.Made = func(c *x509.Certificate) { made = append(made, identity.Serial(c)) }
	a, created, err := ca.Open(cfg)
	if err != nil || !created {
		t.Fatalf("created %t, %v", created, err)
	}
	if len(made) != 2 || made[0] != identity.Serial(a.Root()) || made[1] != identity.Serial(a.Intermediate()) {
		t.Errorf("told of %v", made)
	}
	h.forward(30 * day)
	b, created, err := ca.Open(cfg)
	if err != nil || created {
		t.Fatalf("again: created %t, %v", created, err)
	}
	if !b.Root().Equal(a.Root()) || !b.Intermediate().Equal(a.Intermediate()) || len(made) != 2 {
		t.Error("another authority was opened")
	}
	token, _, err := a.SignJWT(service("web"), []string{"x"}, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := jose.VerifySVID(token, "x", func(identity.TrustDomain) *identity.Bundle { return b.Bundle() }, h.Now()); err != nil {
		t.Errorf("the JWT key changed: %v", err)
	}
	entries, _ := os.ReadDir(cfg.Dir)
	for _, e := range entries {
		if info, _ := e.Info(); info.Mode() != 0o600 {
			t.Errorf("%s has mode %v", e.Name(), info.Mode())
		}
		if raw, _ := os.ReadFile(filepath.Join(cfg.Dir, e.Name())); strings.Contains(string(raw), "PRIVATE") {
			t.Errorf("%s has a key in clear", e.Name())
		}
	}
	if len(entries) != 4 {
		t.Errorf("the folder holds %v", entries)
	}
}

func TestOpenRace(t *testing.T) {
	t.Parallel()
	cfg, _ := config(t)
	const n = 8
	var wg sync.WaitGroup
	var creators atomic.Int32
	all := make([]*ca.Authority, n)
	for i := range n {
		wg.Go(func() {
			a, created, err := ca.Open(cfg)
			if err != nil {
				t.Error(err)
				return
			}
			if created {
				creators.Add(1)
			}
			all[i] = a
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for _, a := range all {
		if !a.Root().Equal(all[0].Root()) || !a.Intermediate().Equal(all[0].Intermediate()) {
			t.Fatal("two authorities in one folder")
		}
	}
	if creators.Load() != 1 {
		t.Errorf("%d say that they created it", creators.Load())
	}
}

func TestSigners(t *testing.T) {
	t.Parallel()
	cfg, h := config(t)
	a := open(t, cfg)
	for name, tt := range map[string]struct {
		cert *x509.Certificate
		life time.Duration
	}{
		"root":         {a.Root(), ca.DefaultRootTTL},
		"intermediate": {a.Intermediate(), ca.DefaultIntermediateTTL},
	} {
		c := tt.cert
		if err := identity.CheckSigner(c, cfg.TrustDomain); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(c.URIs) != 1 || c.URIs[0].String() != "spiffe://shop.example" {
			t.Errorf("%s: URIs %v", name, c.URIs)
		}
		if c.KeyUsage != x509.KeyUsageCertSign|x509.KeyUsageCRLSign || !critical(c, "2.5.29.15") || !critical(c, "2.5.29.19") {
			t.Errorf("%s: key usage %b", name, c.KeyUsage)
		}
		if c.PublicKeyAlgorithm != x509.ECDSA || c.PublicKey.(*ecdsa.PublicKey).Curve != elliptic.P256() {
			t.Errorf("%s: key %v", name, c.PublicKeyAlgorithm)
		}
		if len(c.SubjectKeyId) != 20 || c.SerialNumber.BitLen() > 128 || c.SerialNumber.BitLen() < 64 {
			t.Errorf("%s: identifier %x, serial %x", name, c.SubjectKeyId, c.SerialNumber)
		}
		if back := h.Now().Sub(c.NotBefore); back < 0 || back > 30*time.Second {
			t.Errorf("%s: begins %s ago", name, back)
		}
		if left := c.NotAfter.Sub(h.Now()); left > tt.life || left < tt.life-time.Second {
			t.Errorf("%s: ends in %s", name, left)
		}
	}
	i := a.Intermediate()
	if string(i.AuthorityKeyId) != string(a.Root().SubjectKeyId) || !i.MaxPathLenZero || i.MaxPathLen != 0 || a.Root().MaxPathLen != -1 {
		t.Errorf("authority key %x, path lengths %d and %d", i.AuthorityKeyId, i.MaxPathLen, a.Root().MaxPathLen)
	}
	if string(i.RawSubject) == string(a.Root().RawSubject) {
		t.Error("root and intermediate have one name")
	}
}

func critical(c *x509.Certificate, oid string) bool {
	for _, e := range c.Extensions {
		if e.Id.String() == oid {
			return e.Critical
		}
	}
	return false
}

func TestIntermediateIsReplacedAtHalf(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		next func(t *testing.T, a *ca.Authority, cfg ca.Config) *ca.Authority
	}{
		{"by open", func(t *testing.T, _ *ca.Authority, cfg ca.Config) *ca.Authority { return open(t, cfg) }},
		{"while it runs", func(_ *testing.T, a *ca.Authority, _ ca.Config) *ca.Authority { return a }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg, h := config(t)
			a := open(t, cfg)
			first := a.Intermediate()
			old, err := a.SignX509(ca.Template{ID: service("web"), PublicKey: publicKey(), TTL: 60 * day})
			if err != nil {
				t.Fatal(err)
			}
			h.forward(44 * day)
			a = tt.next(t, a, cfg)
			sign(t, a)
			if !a.Intermediate().Equal(first) {
				t.Fatal("replaced before half of its life")
			}
			h.forward(2 * day)
			a = tt.next(t, a, cfg)
			chain := sign(t, a)
			if a.Intermediate().Equal(first) || !chain[1].Equal(a.Intermediate()) {
				t.Fatal("not replaced after half of its life")
			}
			trust := trusting(a, "web")
			for name, c := range map[string][]*x509.Certificate{"old": old, "new": chain} {
				if _, err := trust.Verify(c, h.Now()); err != nil {
					t.Errorf("a leaf of the %s intermediate: %v", name, err)
				}
			}
			if again := open(t, cfg); !again.Intermediate().Equal(a.Intermediate()) {
				t.Error("the new intermediate was not kept")
			}
		})
	}
}

func sign(t testing.TB, a *ca.Authority) []*x509.Certificate {
	t.Helper()
	chain, err := a.SignX509(ca.Template{ID: service("web"), PublicKey: publicKey(), TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	return chain
}

func trusting(a *ca.Authority, names ...string) *identity.Trust {
	trust := &identity.Trust{
		Bundles: map[identity.TrustDomain]*identity.Bundle{a.Bundle().TrustDomain: a.Bundle()},
		Members: map[identity.ID]bool{},
	}
	for _, n := range names {
		trust.Members[service(n)] = true
	}
	return trust
}

// While the root key cannot be opened the old intermediate serves to its end, and
// no longer.
func TestRootKeyIsNotNeededToServe(t *testing.T) {
	t.Parallel()
	cfg, h := config(t)
	open(t, cfg)
	rootKey := filepath.Join(cfg.Dir, "root.key")
	aside := rootKey + ".aside"
	if err := os.Rename(rootKey, aside); err != nil {
		t.Fatal(err)
	}
	a := open(t, cfg)
	sign(t, a)
	h.forward(60 * day)
	first := a.Intermediate()
	sign(t, a)
	if _, _, err := ca.Open(cfg); err == nil {
		t.Error("opened past the half without a root key")
	} else {
		wantFault(t, err, fault.KeyUnreadable)
	}
	if err := os.Rename(aside, rootKey); err != nil {
		t.Fatal(err)
	}
	sign(t, a)
	if !a.Intermediate().Equal(first) {
		t.Error("the root key was tried again at once")
	}
	h.forward(2 * time.Minute)
	sign(t, a)
	if a.Intermediate().Equal(first) {
		t.Error("the root key was not tried again")
	}
	if err := os.Remove(rootKey); err != nil {
		t.Fatal(err)
	}
	h.forward(91 * day)
	_, err := a.SignX509(ca.Template{ID: service("web"), PublicKey: publicKey(), TTL: time.Hour})
	wantFault(t, err, fault.CertUnusable)
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		harm func(t *testing.T, cfg *ca.Config, h *hand)
		code fault.Code
	}{
		{"another trust domain", func(_ *testing.T, cfg *ca.Config, _ *hand) {
			cfg.TrustDomain = must(identity.ParseTrustDomain("other.example"))
		}, fault.CAForeign},
		{"clock before the root", func(_ *testing.T, _ *ca.Config, h *hand) { h.forward(-time.Minute) }, fault.ClockWrong},
		{"clock after the root", func(_ *testing.T, _ *ca.Config, h *hand) { h.forward(11 * 365 * day) }, fault.CertUnusable},
		{"intermediate from the future", func(t *testing.T, cfg *ca.Config, h *hand) {
			h.forward(100 * day)
			open(t, *cfg)
			h.forward(-50 * day)
		}, fault.ClockWrong},
		{"root certificate gone", func(t *testing.T, cfg *ca.Config, _ *hand) { remove(t, cfg, "root.pem") }, fault.KeyCorrupt},
		{"root certificate damaged", func(t *testing.T, cfg *ca.Config, _ *hand) { damage(t, cfg, "root.pem") }, fault.KeyCorrupt},
		{"root certificate of another authority", func(t *testing.T, cfg *ca.Config, _ *hand) { swap(t, cfg, "root.pem") }, fault.KeyCorrupt},
		{"root certificate of another authority, no intermediate", func(t *testing.T, cfg *ca.Config, _ *hand) {
			swap(t, cfg, "root.pem")
			remove(t, cfg, "intermediate.sealed")
		}, fault.KeyCorrupt},
		{"JWT key gone", func(t *testing.T, cfg *ca.Config, _ *hand) { remove(t, cfg, "jwt.key") }, fault.KeyUnreadable},
		{"JWT key damaged", func(t *testing.T, cfg *ca.Config, _ *hand) { damage(t, cfg, "jwt.key") }, fault.KeyCorrupt},
		{"intermediate damaged", func(t *testing.T, cfg *ca.Config, _ *hand) { damage(t, cfg, "intermediate.sealed") }, fault.KeyCorrupt},
		{"root key in the JWT key's place", func(t *testing.T, cfg *ca.Config, _ *hand) {
			if err := os.Rename(filepath.Join(cfg.Dir, "root.key"), filepath.Join(cfg.Dir, "jwt.key")); err != nil {
				t.Fatal(err)
			}
		}, fault.KeyCorrupt},
		{"another master key", func(t *testing.T, cfg *ca.Config, _ *hand) {
			m, _, err := keys.OpenMaster(filepath.Join(t.TempDir(), "k"))
			if err != nil {
				t.Fatal(err)
			}
			cfg.Master = m
		}, fault.KeyCorrupt},
		{"no trust domain", func(_ *testing.T, cfg *ca.Config, _ *hand) { cfg.TrustDomain = identity.TrustDomain{} }, fault.Internal},
		{"negative life", func(_ *testing.T, cfg *ca.Config, _ *hand) { cfg.RootTTL = -1 }, fault.Internal},
		{"a file in the folder's place", func(_ *testing.T, cfg *ca.Config, _ *hand) { cfg.Dir = filepath.Join(cfg.Dir, "root.pem") }, fault.KeyUnwritable},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			cfg, h := config(t)
			open(t, cfg)
			tt.harm(t, &cfg, h)
			before := listing(cfg.Dir)
			_, created, err := ca.Open(cfg)
			wantFault(t, err, tt.code)
			if created {
				t.Error("created beside an error")
			}
			if after := listing(cfg.Dir); after != before {
				t.Errorf("the folder changed:\n%s\n%s", before, after)
			}
		})
	}
}

func remove(t *testing.T, cfg *ca.Config, name string) {
	if err := os.Remove(filepath.Join(cfg.Dir, name)); err != nil {
		t.Fatal(err)
	}
}

func damage(t *testing.T, cfg *ca.Config, name string) {
	path := filepath.Join(cfg.Dir, name)
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// swap puts the file of another authority of the same trust domain in place.
func swap(t *testing.T, cfg *ca.Config, name string) {
	other, _ := config(t)
	other.Master = cfg.Master
	open(t, other)
	data, err := os.ReadFile(filepath.Join(other.Dir, name))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, name), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func listing(dir string) string {
	var b strings.Builder
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		data, _ := os.ReadFile(filepath.Join(dir, e.Name()))
		b.WriteString(e.Name() + " " + string(data) + "\n")
	}
	return b.String()
}

// A creation that was killed before root.pem starts over: nothing was released.
func TestCreationAfterACrash(t *testing.T) {
	t.Parallel()
	cfg, _ := config(t)
	open(t, cfg)
	remove(t, &cfg, "root.pem")
	remove(t, &cfg, "intermediate.sealed")
	a, created, err := ca.Open(cfg)
	if err != nil || !created {
		t.Fatalf("created %t, %v", created, err)
	}
	sign(t, a)
}

// Without its intermediate an authority makes another one under the same root.
func TestIntermediateIsMadeAgain(t *testing.T) {
	t.Parallel()
	cfg, _ := config(t)
	first := open(t, cfg)
	remove(t, &cfg, "intermediate.sealed")
	a, created, err := ca.Open(cfg)
	if err != nil || created {
		t.Fatalf("created %t, %v", created, err)
	}
	if !a.Root().Equal(first.Root()) || a.Intermediate().Equal(first.Intermediate()) {
		t.Error("another root, or the same intermediate")
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
