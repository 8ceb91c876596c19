package gate_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
	"github.com/parleymesh/parley/internal/policy"
)

const issuer = "https://id.example"

// An idp is an issuer that may be down.
type idp struct {
	key    *ecdsa.PrivateKey
	issuer *jose.Issuer
	down   atomic.Bool
}

func newIDP(tb testing.TB) *idp {
	tb.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	set, err := jose.MarshalKey("k", &key.PublicKey)
	if err != nil {
		tb.Fatal(err)
	}
	i, _, err := jose.NewIssuer(jose.Rules{Issuer: issuer, Algorithms: jose.Algorithms(), Types: []string{jose.TypeAccess}, MaxAge: 2 * time.Hour}, set)
	if err != nil {
		tb.Fatal(err)
	}
	return &idp{key: key, issuer: i}
}

func (p *idp) Issuer(url string) (*jose.Issuer, error) {
	if p.down.Load() || url != issuer {
		return nil, errors.New("down")
	}
	return p.issuer, nil
}

func (p *idp) Newer(url string, _ *jose.Issuer) (*jose.Issuer, error) { return p.Issuer(url) }

func (p *idp) token(tb testing.TB, change func(*identity.Token)) string {
	tb.Helper()
	t := identity.Token{
		Issuer: issuer, Subject: "alice", ClientID: "shop", Audiences: []string{"orders"},
		Scopes: []string{"orders.read"}, Expires: start.Add(time.Hour),
	}
	if change != nil {
		change(&t)
	}
	token, err := jose.SignAccess(p.key, "k", t, start)
	if err != nil {
		tb.Fatal(err)
	}
	return token
}

func TestTokenAtTheEdge(t *testing.T) {
	t.Parallel()
	const realm, invalid, insufficient = `Bearer realm="parley"`, `Bearer realm="parley", error="invalid_token"`, `Bearer realm="parley", error="insufficient_scope"`
	f := newFixture(t)
	forger := newIDP(t)
	with := f.idp.token
	for name, tt := range map[string]struct {
		route, token, key string
		down              bool
		after             time.Duration
		status            int
		code, reason      string
		challenge         string
		named, claimed    bool // who the token is of, verified or not
	}{
		"good":               {route: "4", token: with(t, nil), reason: "allowed", named: true},
		"good, beside a key": {route: "5", token: with(t, nil), key: "writer", reason: "allowed", named: true},
		"a key is enough":    {route: "5", key: "reader", reason: "allowed"},
		"none":               {route: "4", status: 401, code: "credentials_required", reason: "no_credential", challenge: realm},
		"a key only":         {route: "4", key: "reader", status: 401, code: "credentials_required", reason: "no_credential", challenge: realm},
		"other audience": {
			route: "4", token: with(t, func(c *identity.Token) { c.Audiences = []string{"billing"} }),
			status: 401, code: "credentials_invalid", reason: "jwt_audience", challenge: invalid, named: true,
		},
		"no such scope": {
			route: "4", token: with(t, func(c *identity.Token) { c.Scopes = []string{"orders.write"} }),
			status: 403, code: "call_not_allowed", reason: "scope_missing", challenge: insufficient, named: true,
		},
		"a scope of the key's": {
			route: "5", key: "writer", token: with(t, func(c *identity.Token) { c.Scopes = nil }),
			status: 403, code: "call_not_allowed", reason: "scope_missing", challenge: insufficient, named: true,
		},
		"expired":      {route: "4", token: with(t, nil), after: time.Hour, status: 401, code: "credentials_invalid", reason: "jwt_expired", challenge: invalid, named: true},
		"too old":      {route: "4", token: with(t, func(c *identity.Token) { c.Expires = start.Add(9 * time.Hour) }), after: 3 * time.Hour, status: 401, code: "credentials_invalid", reason: "jwt_too_old", challenge: invalid, named: true},
		"not yet":      {route: "4", token: with(t, nil), after: -time.Minute, status: 401, code: "credentials_invalid", reason: "jwt_not_yet", challenge: invalid, named: true},
		"forged":       {route: "4", token: forger.token(t, nil), status: 401, code: "credentials_invalid", reason: "jwt_signature", challenge: invalid, claimed: true},
		"other issuer": {route: "4", token: with(t, func(c *identity.Token) { c.Issuer = "https://evil.example" }), status: 401, code: "credentials_invalid", reason: "jwt_issuer", challenge: invalid, claimed: true},
		"no token":     {route: "4", token: "hunter2", status: 401, code: "credentials_invalid", reason: "jwt_malformed", challenge: invalid},
		"bad token, good key": {
			route: "5", key: "reader", token: forger.token(t, nil),
			status: 401, code: "credentials_invalid", reason: "jwt_signature", challenge: invalid, claimed: true,
		},
		"good token, bad key": {route: "5", key: "unknown", token: with(t, nil), status: 401, code: "credentials_invalid", reason: "key_unknown", challenge: realm},
		"issuer down":         {route: "4", token: with(t, nil), down: true, status: 503, code: "issuer_unavailable", reason: "jwks_unavailable", claimed: true},
		"not for us":          {route: "1", key: "reader", token: forger.token(t, nil), reason: "allowed"},
		"not for us, public":  {route: "0", token: "hunter2", reason: "allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			f.clock.offset.Store(int64(tt.after))
			f.idp.down.Store(tt.down)
			r := f.edge(t, tt.route, tt.key)
			h, _ := r.Header.(http.Header)
			if tt.token != "" {
				h.Set("Authorization", "Bearer "+tt.token)
			}
			v := f.Check(r)
			if v.Allow != (tt.status == 0) || v.Status != tt.status || v.Code != tt.code || v.Reason != tt.reason || v.Challenge != tt.challenge {
				t.Errorf("got %+v", v)
			}
			f.Done(r, call.Outcome{Status: 200})
			events := f.log.take()
			if len(events) != 1 {
				t.Fatalf("%d events", len(events))
			}
			e := events[0]
			var of, at string
			address, private := "192.0.2.1:5000", ""
			if tt.named { // and then the address is a person's
				of, at = "alice", issuer
				address, private = private, address
			}
			if e.Reason != tt.reason || e.Caller.Issuer != at || e.Subject() != of {
				t.Errorf("recorded %s of %q at %q", e.Reason, e.Subject(), e.Caller.Issuer)
			}
			if e.Caller.Address != address || e.Private != nil && e.Private.Address != private {
				t.Errorf("the client's address is recorded as %q, and of the person: %+v", e.Caller.Address, e.Private)
			}
			if got := strings.Contains(e.Message, "unverified"); got != tt.claimed || got && !strings.Contains(e.Message, "claims issuer") {
				t.Errorf("the message is %q", e.Message)
			}
			if committed := string(audit.Committed([]byte(f.log.bodies[len(f.log.bodies)-1]))); strings.Contains(committed, "alice") {
				t.Errorf("what cannot be erased has the person: %s", committed)
			}
			if tt.key == "reader" && tt.route == "5" && e.Caller.KeyName != "reader" {
				t.Errorf("a good key beside it is recorded as %q", e.Caller.KeyName)
			}
		})
	}
}

// TestTokenIsNowhere: whatever becomes of a token, no part of it is recorded or
// logged.
func TestTokenIsNowhere(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	canary := f.idp.token(t, nil)
	part := strings.Split(canary, ".")
	for _, token := range []string{
		canary, canary + ".AAAA.AAAA", canary[:len(canary)-2], part[0] + "." + part[1] + "." + strings.Repeat("A", 86), part[1], newIDP(t).token(t, nil),
	} {
		for _, route := range []string{"0", "1", "4", "5"} {
			for _, down := range []bool{false, true} {
				f.idp.down.Store(down)
				r := f.edge(t, route, "")
				r.Header.(http.Header).Set("Authorization", "Bearer "+token)
				v := f.Check(r)
				f.Done(r, call.Outcome{Status: v.Status})
			}
		}
	}
	if len(f.log.bodies) != 48 {
		t.Fatalf("%d events", len(f.log.bodies))
	}
	for _, text := range append(f.log.bodies, f.logged.String()) {
		for _, p := range part {
			if strings.Contains(text, p[:20]) {
				t.Errorf("a part of a token is in %s", text)
			}
		}
	}
}

// TestClientBehindAProxy: both addresses are on record, each as what it is.
func TestClientBehindAProxy(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	r := f.edge(t, "0", "")
	r.Client = netip.MustParseAddr("198.51.100.7")
	f.Check(r)
	f.Done(r, call.Outcome{Status: 200})
	if p := f.log.take()[0].Caller; p.Address != "198.51.100.7" || p.Via != "192.0.2.1:5000" {
		t.Errorf("recorded %s by %s", p.Address, p.Via)
	}
}

// TestRevisionTakesAnIssuerAway: a token is judged by the route of its revision,
// and one that is remembered is not accepted where it is no longer named.
func TestRevisionTakesAnIssuerAway(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	request := func(revision int64) *call.Request {
		r := f.edge(t, "4", "")
		r.Revision = revision
		r.Header.(http.Header).Set("Authorization", "Bearer "+f.idp.token(t, nil))
		return r
	}
	if v := f.Check(request(7)); !v.Allow {
		t.Fatalf("got %+v", v)
	}
	next := *f.snap
	next.Revision, next.Rules = 8, append([]policy.Rule{}, f.snap.Rules...)
	for i := range next.Rules {
		if next.Rules[i].Target == "edge/routes[4]" {
			next.Rules[i].Any = []policy.Requirement{{Kind: policy.JWT, Issuer: "https://other.example", Audience: "orders"}}
		}
	}
	if err := f.Apply(&next); err != nil {
		t.Fatal(err)
	}
	if v := f.Check(request(8)); v.Allow || v.Reason != "jwt_issuer" {
		t.Errorf("got %+v", v)
	}
}
