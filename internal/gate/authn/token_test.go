package authn_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/gate/authn"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
	"github.com/parleymesh/parley/internal/proxy/route"
)

const issuer = "https://id.example"

var began = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// An idp is an issuer with one key, whose keys may be gone or about to change.
type idp struct {
	key           *ecdsa.PrivateKey
	now, next     atomic.Pointer[jose.Issuer]
	asked, loaded atomic.Int32
}

var errDown = errors.New("down")

func newIDP(tb testing.TB, kid string) *idp {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	p := &idp{key: key}
	p.now.Store(p.keys(tb, kid))
	return p
}

func (p *idp) keys(tb testing.TB, kid string) *jose.Issuer {
	tb.Helper()
	set, err := jose.MarshalKey(kid, &p.key.PublicKey)
	if err != nil {
		tb.Fatal(err)
	}
	i, _, err := jose.NewIssuer(jose.Rules{Issuer: issuer, Algorithms: jose.Algorithms(), Types: []string{jose.TypeAccess}}, set)
	if err != nil {
		tb.Fatal(err)
	}
	return i
}

func (p *idp) Issuer(url string) (*jose.Issuer, error) {
	p.asked.Add(1)
	if i := p.now.Load(); i != nil && url == issuer {
		return i, nil
	}
	return nil, errDown
}

func (p *idp) Newer(url string, _ *jose.Issuer) (*jose.Issuer, error) {
	p.loaded.Add(1)
	if next := p.next.Load(); next != nil {
		p.now.Store(next)
	}
	return p.Issuer(url)
}

func (p *idp) token(tb testing.TB, kid string, change func(*identity.Token)) string {
	tb.Helper()
	t := identity.Token{
		Issuer: issuer, Subject: "alice", ClientID: "shop", Audiences: []string{"orders"}, Scopes: []string{"orders.read"}, Expires: began.Add(time.Minute),
	}
	if change != nil {
		change(&t)
	}
	token, err := jose.SignAccess(p.key, kid, t, began)
	if err != nil {
		tb.Fatal(err)
	}
	return token
}

func TestTokenFrom(t *testing.T) {
	t.Parallel()
	key, _ := newKey(t)
	for name, tt := range map[string]struct {
		header http.Header
		want   string
	}{
		"none":         {http.Header{}, ""},
		"bearer":       {http.Header{"Authorization": {"Bearer a.b.c"}}, "a.b.c"},
		"in small":     {http.Header{"Authorization": {"bearer  a.b.c"}}, "a.b.c"},
		"whatever":     {http.Header{"Authorization": {"Bearer hunter2"}}, "hunter2"},
		"basic":        {http.Header{"Authorization": {"Basic a.b.c"}}, ""},
		"DPoP":         {http.Header{"Authorization": {"DPoP a.b.c"}}, ""},
		"an API key":   {http.Header{"Authorization": {"Bearer " + key}}, ""},
		"several":      {http.Header{"Authorization": {"Bearer a.b.c", "Bearer a.b.c"}}, ""},
		"in a cookie":  {http.Header{"Cookie": {"access_token=a.b.c"}}, ""},
		"in X-API-Key": {http.Header{"X-Api-Key": {"a.b.c"}}, ""},
	} {
		if got, present := authn.TokenFrom(route.Fields(tt.header)); got != tt.want || present != (tt.want != "") {
			t.Errorf("%s: %q, %t", name, got, present)
		}
	}
	if _, present := authn.TokenFrom(nil); present {
		t.Error("without a header")
	}
}

func TestTokens(t *testing.T) {
	t.Parallel()
	p := newIDP(t, "k")
	tokens := authn.NewTokens(p)
	token := p.token(t, "k", nil)
	for range 3 {
		got, err := tokens.Verify(token, []string{"https://other.example", issuer}, began)
		want := &identity.Token{Issuer: issuer, Subject: "alice", ClientID: "shop", Audiences: []string{"orders"}, Scopes: []string{"orders.read"}, Expires: began.Add(time.Minute)}
		if err != nil || cmp.Diff(want, got, cmp.Comparer(time.Time.Equal)) != "" {
			t.Fatalf("got %+v, %v", got, err)
		}
	}
	// Remembered or not, a route that does not name the issuer does not take it.
	if got, err := tokens.Verify(token, []string{"https://other.example"}, began); got != nil || !errors.Is(err, jose.ErrIssuer) {
		t.Errorf("elsewhere: %v, %v", got, err)
	}
	// Nor is it good past its end, and the facts are told for the record.
	if got, err := tokens.Verify(token, []string{issuer}, began.Add(time.Minute)); !errors.Is(err, jose.ErrExpired) || got == nil || got.Subject != "alice" {
		t.Errorf("expired: %v, %v", got, err)
	}
}

// TestTokenErrorsNameTheClaimed: whose a token says to be is told as what it is, of
// whom is not, since a message cannot be erased, and the token is not either.
func TestTokenErrorsNameTheClaimed(t *testing.T) {
	t.Parallel()
	p, forger := newIDP(t, "k"), newIDP(t, "k")
	tokens := authn.NewTokens(p)
	for name, tt := range map[string]struct {
		token string
		want  error
	}{
		"forged":         {forger.token(t, "k", nil), jose.ErrSignature},
		"unknown kid":    {p.token(t, "x", nil), jose.ErrNoKey},
		"other issuer":   {p.token(t, "k", func(c *identity.Token) { c.Issuer = "https://evil.example" }), jose.ErrIssuer},
		"strange in kid": {p.token(t, "../x", nil), jose.ErrNoKey},
	} {
		got, err := tokens.Verify(tt.token, []string{issuer}, began)
		if got != nil || !errors.Is(err, tt.want) || !strings.Contains(err.Error(), `issuer "`) || strings.Contains(err.Error(), "alice") || !strings.Contains(err.Error(), "unverified") {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		for part := range strings.SplitSeq(tt.token, ".") {
			if strings.Contains(err.Error(), part) {
				t.Errorf("%s: the error repeats the token: %v", name, err)
			}
		}
	}
	if _, err := tokens.Verify("hunter2", []string{issuer}, began); !errors.Is(err, jose.ErrMalformed) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("no token: %v", err)
	}
}

// TestKeysOfAnIssuer: those that went away take the tokens with them that were
// verified by them, those that are new are looked for once, and an issuer without
// keys is unavailable.
func TestKeysOfAnIssuer(t *testing.T) {
	t.Parallel()
	p := newIDP(t, "old")
	tokens := authn.NewTokens(p)
	old, fresh := p.token(t, "old", nil), p.token(t, "new", nil)
	if _, err := tokens.Verify(old, []string{issuer}, began); err != nil || p.loaded.Load() != 0 {
		t.Fatalf("%v, %d loads", err, p.loaded.Load())
	}
	p.next.Store(p.keys(t, "new"))
	if _, err := tokens.Verify(fresh, []string{issuer}, began); err != nil || p.loaded.Load() != 1 {
		t.Errorf("a new kid: %v, %d loads", err, p.loaded.Load())
	}
	if _, err := tokens.Verify(old, []string{issuer}, began); !errors.Is(err, jose.ErrNoKey) {
		t.Errorf("the old kid is remembered: %v", err)
	}
	p.next.Store(nil)
	p.now.Store(nil)
	for name, token := range map[string]string{"remembered": fresh, "new": p.token(t, "new", func(c *identity.Token) { c.Subject = "bob" })} {
		if _, err := tokens.Verify(token, []string{issuer}, began); !errors.Is(err, authn.ErrKeysUnavailable) {
			t.Errorf("without keys, %s: %v", name, err)
		}
	}
}

// TestTokenCacheIsBounded: many tokens come and go, and each is still judged right.
func TestTokenCacheIsBounded(t *testing.T) {
	t.Parallel()
	p := newIDP(t, "k")
	tokens := authn.NewTokens(p)
	facts := func(n int) *identity.Token {
		return &identity.Token{Issuer: issuer, Subject: strings.Repeat("s", n), Audiences: []string{"orders"}}
	}
	for i := range 40_000 {
		tokens.Remember(fmt.Sprint("small ", i), p.now.Load(), facts(10))
	}
	if n, _ := tokens.Held(); n > 16_384 || n < 8_000 {
		t.Errorf("it holds %d tokens", n)
	}
	for i := range 10_000 {
		tokens.Remember(fmt.Sprint("large ", i), p.now.Load(), facts(6000))
	}
	if _, size := tokens.Held(); size > 17<<20 {
		t.Errorf("it holds %d bytes", size)
	}
	if _, err := tokens.Verify("large 9999", []string{issuer}, began); err != nil && !errors.Is(err, jose.ErrExpired) {
		t.Errorf("the newest is forgotten: %v", err)
	}
	if _, err := tokens.Verify("small 0", []string{issuer}, began); !errors.Is(err, jose.ErrMalformed) {
		t.Errorf("the oldest is remembered: %v", err)
	}
}

func TestTokensConcurrently(t *testing.T) {
	t.Parallel()
	p := newIDP(t, "k")
	tokens := authn.NewTokens(p)
	var wg sync.WaitGroup
	for i := range 8 {
		token := p.token(t, "k", func(c *identity.Token) { c.Subject = fmt.Sprint(i % 3) })
		wg.Go(func() {
			for range 100 {
				if got, err := tokens.Verify(token, []string{issuer}, began); err != nil || got.Subject != fmt.Sprint(i%3) {
					t.Errorf("got %v, %v", got, err)
				}
			}
		})
	}
	wg.Wait()
}

func FuzzVerifyToken(f *testing.F) {
	p := newIDP(f, "k")
	tokens := authn.NewTokens(p)
	good := p.token(f, "k", nil)
	f.Add(good)
	f.Add(good + ".")
	f.Add("a.b.c")
	f.Fuzz(func(t *testing.T, token string) {
		got, err := tokens.Verify(token, []string{issuer}, began)
		if (err == nil) != (token == good) || (got == nil) != (err != nil) {
			t.Fatalf("%q gives %v, %v", token, got, err)
		}
	})
}

// BenchmarkTokenSeenBefore is row P8 of the budget: a microsecond, no allocation.
// Nearly all of it is the hash, which "hash alone" shows.
func BenchmarkTokenSeenBefore(b *testing.B) {
	p := newIDP(b, "k")
	tokens, accepted := authn.NewTokens(p), []string{issuer}
	for name, scopes := range map[string]int{"usual": 1, "long": 60} {
		token := p.token(b, "k", func(c *identity.Token) { c.Scopes = strings.Fields(strings.Repeat("orders.read ", scopes)) })
		b.Run(fmt.Sprintf("%s token of %d bytes", name, len(token)), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := tokens.Verify(token, accepted, began); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("hash alone of %d bytes", len(token)), func(b *testing.B) {
			text := []byte(token)
			for b.Loop() {
				sha256.Sum256(text)
			}
		})
	}
}

func TestTokenSeenBeforeDoesNotAllocate(t *testing.T) {
	p := newIDP(t, "k")
	tokens, accepted := authn.NewTokens(p), []string{issuer}
	token := p.token(t, "k", nil)
	if n := testing.AllocsPerRun(100, func() { _, _ = tokens.Verify(token, accepted, began) }); n != 0 {
		t.Errorf("it allocates %v times", n)
	}
}
