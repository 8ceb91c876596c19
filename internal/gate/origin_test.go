package gate_test

import (
	"net/http"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/jose"
	mtlstest "github.com/parleymesh/parley/internal/mtls/xtest"
	"github.com/parleymesh/parley/internal/snapshot"
)

// vouch is what the edge says to orders about the caller of a request with header.
func (f *fixture) vouch(t *testing.T, own *identity.Credential, to, field, value string) string {
	t.Helper()
	r := f.edge(t, "5", "")
	r.Header = http.Header{field: {value}}
	if v := f.Check(r); !v.Allow {
		t.Fatalf("got %+v", v)
	}
	token, err := f.Vouch(r, own, id(t, to))
	if err != nil {
		t.Fatal(err)
	}
	f.Done(r, call.Outcome{Status: 200})
	return token
}

// TestVouchRemembers: one signature does for a caller, a service and a credential,
// for 45 seconds and for as long as nothing that it depends on changes.
func TestVouchRemembers(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ca := mtlstest.NewCA(t, "shop.example")
	own := ca.CredentialFor(t, id(t, "gateway/edge"), time.Hour)
	bearer := "Bearer " + f.idp.token(t, nil)
	other := "Bearer " + f.idp.token(t, func(c *identity.Token) { c.Subject = "bob" })
	key := func() string { return f.vouch(t, own, "orders", "X-Api-Key", f.keys["reader"]) }
	alice := func() string { return f.vouch(t, own, "orders", "Authorization", bearer) }
	first, byKey := alice(), key()
	for name, same := range map[string][2]string{"token": {first, alice()}, "key": {byKey, key()}} {
		if same[0] == "" || same[0] != same[1] {
			t.Errorf("%s: signed again", name)
		}
	}
	for name, another := range map[string]string{
		"another caller":     f.vouch(t, own, "orders", "Authorization", other),
		"a key":              byKey,
		"another service":    f.vouch(t, own, "ledger", "Authorization", bearer),
		"another credential": f.vouch(t, ca.CredentialFor(t, id(t, "gateway/edge"), time.Hour), "orders", "Authorization", bearer),
	} {
		if another == first {
			t.Errorf("%s has the same", name)
		}
	}

	f.clock.move(44 * time.Second)
	if alice() != first {
		t.Error("signed again after 44 s")
	}
	f.clock.move(time.Second)
	second := alice()
	if second == first {
		t.Error("still sent after 45 s")
	}
	f.clock.move(-44 * time.Second)
	if alice() == second {
		t.Error("a clock that went back sends what is from the future")
	}

	next := *f.trust.Load()
	next.Epoch++
	before := alice()
	f.trust.Store(&next)
	if after := alice(); after == before {
		t.Error("still sent under another trust epoch")
	} else {
		before = after
	}
	if err := f.Apply(f.snap); err != nil {
		t.Fatal(err)
	}
	if after := alice(); after == before {
		t.Error("still sent after another snapshot")
	}
}

// TestVouchEndsWithTheCredential: what is said ends with the first of all that it
// stands on.
func TestVouchEndsWithTheCredential(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ca := mtlstest.NewCA(t, "shop.example")
	own := ca.CredentialFor(t, id(t, "gateway/edge"), time.Hour)
	f.addKey(t, "short", start.Add(20*time.Second), "orders.read")
	if err := f.Apply(f.snap); err != nil {
		t.Fatal(err)
	}
	life := func(token string) time.Duration {
		i, err := jose.VerifyIdentity(token, own.Chain[0])
		if err != nil {
			t.Fatal(err)
		}
		return i.Expires.Sub(i.Issued)
	}
	until := func(d time.Duration) string {
		return "Bearer " + f.idp.token(t, func(c *identity.Token) { c.Expires = start.Add(d) })
	}
	for name, tt := range map[string]struct {
		field, value string
		want         time.Duration
	}{
		"long":         {"Authorization", until(time.Hour), time.Minute},
		"token":        {"Authorization", until(7 * time.Second), 7 * time.Second},
		"key":          {"X-Api-Key", f.keys["short"], 20 * time.Second},
		"key for long": {"X-Api-Key", f.keys["reader"], time.Minute},
	} {
		if got := life(f.vouch(t, own, "orders", tt.field, tt.value)); got != tt.want {
			t.Errorf("%s: good for %s, want %s", name, got, tt.want)
		}
	}
	// Certificates of the test's CA are by the clock of the machine.
	f.clock.offset.Store(int64(own.NotAfter().Add(-5 * time.Second).Sub(start)))
	bearer := "Bearer " + f.idp.token(t, func(c *identity.Token) { c.Expires = own.NotAfter().Add(time.Hour) })
	r := f.edge(t, "5", "")
	r.Caller = identity.Caller{Token: &identity.Token{Issuer: issuer, Subject: bearer[:20], Expires: own.NotAfter().Add(time.Hour)}}
	token, err := f.Vouch(r, own, id(t, "orders"))
	if err != nil || life(token) > 6*time.Second {
		t.Errorf("past the end of the certificate: %v, %v", life(token), err)
	}
	// One that was let in after its end, within the skew of its issuer's clock.
	r.Caller.Token = &identity.Token{Issuer: issuer, Subject: "late", Expires: f.clock.Now().Add(-10 * time.Second)}
	if token, err = f.Vouch(r, own, id(t, "orders")); err != nil || life(token) != time.Second {
		t.Errorf("for a token within the skew: %v, %v", life(token), err)
	}
}

func TestVouchForNobody(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	own := mtlstest.NewCA(t, "shop.example").CredentialFor(t, id(t, "gateway/edge"), time.Hour)
	r := f.edge(t, "0", "")
	f.Check(r)
	if token, err := f.Vouch(r, own, id(t, "orders")); token != "" || err != nil {
		t.Errorf("got %q, %v", token, err)
	}
}

// gatewayCall is a gateway's call of orders, with what it says of its caller.
func (f *fixture) gatewayCall(t testing.TB, own *identity.Credential, token string) *call.Request {
	t.Helper()
	r := inbound(t)
	r.Peer = call.Peer{ID: own.ID, Serial: own.Serial(), NotAfter: start.Add(time.Hour), Leaf: own.Chain[0]}
	r.Header = http.Header{call.IdentityField: {token}}
	return r
}

// TestOriginIsJudgedEachTime: that a token was good once says nothing about
// another time, service or connection.
func TestOriginIsJudgedEachTime(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	ca := mtlstest.NewCA(t, "shop.example")
	own := ca.CredentialFor(t, id(t, "gateway/edge"), time.Hour)
	renewed := ca.CredentialFor(t, own.ID, time.Hour)
	i := &jose.Identity{Issuer: own.ID, Audience: id(t, "orders"), Issued: start, Expires: start.Add(time.Minute), Caller: identity.Caller{KeyID: "k", KeyName: "ci"}}
	token, err := jose.SignIdentity(own, i)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name   string
		change func(*call.Request)
		after  time.Duration
		reason string // empty where only rules are asked
	}{
		{"first", func(*call.Request) {}, 0, ""},
		{"again", func(*call.Request) {}, 89 * time.Second, ""},
		{"too late", func(*call.Request) {}, 90 * time.Second, "identity_expired"},
		{"other service", func(r *call.Request) { r.LocalID = id(t, "ledger") }, 0, "identity_audience"},
		{"other leaf", func(r *call.Request) { r.Peer.Leaf = renewed.Chain[0] }, 0, "identity_key"},
		{"no leaf", func(r *call.Request) { r.Peer.Leaf = nil }, 0, "identity_key"},
		{"twice", func(r *call.Request) { r.Header = http.Header{call.IdentityField: {token, token}} }, 0, "identity_several"},
		{"other peer with that leaf", func(r *call.Request) { r.Peer.ID = id(t, "gateway/other") }, 0, "not_member"},
	} {
		f.clock.offset.Store(int64(tt.after))
		r := f.gatewayCall(t, own, token)
		tt.change(r)
		v := f.Check(r)
		f.Done(r, call.Outcome{Status: 403})
		e := f.log.take()[0]
		if tt.reason != "" && (v.Reason != tt.reason || v.Allow || r.Caller.Origin != nil || e.Caller.KeyID != "") {
			t.Errorf("%s: %+v, recorded %+v", tt.name, v, e.Caller)
		}
		if tt.reason == "" && (v.Reason != "caller_not_allowed" || r.Caller.Origin == nil || e.Caller.KeyName != "ci" || e.Caller.ID != own.ID) {
			t.Errorf("%s: %+v, recorded %+v", tt.name, v, e.Caller)
		}
	}
}

// TestOriginOfOthersIsPassedOver: of a workload, of a gateway of another trust
// domain and of what only looks like one, the field is not read.
func TestOriginOfOthersIsPassedOver(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, peer := range []string{"web", "gateway", "gateway/edge/x"} {
		own := mtlstest.NewCA(t, "shop.example").CredentialFor(t, id(t, peer), time.Hour)
		next := trust([]identity.ID{own.ID, id(t, "orders")})
		f.trust.Store(next)
		r := f.gatewayCall(t, own, "forged")
		if v := f.Check(r); v.Reason == "identity_malformed" || r.Caller.Origin != nil {
			t.Errorf("%s: %+v, %+v", peer, v, r.Caller)
		}
	}
	partner, err := identity.ParseID("spiffe://partner.example/gateway/edge")
	if err != nil {
		t.Fatal(err)
	}
	f.trust.Store(trust([]identity.ID{partner}))
	r := inbound(t)
	r.Peer.ID, r.Header = partner, http.Header{call.IdentityField: {"forged"}}
	if v := f.Check(r); v.Reason != "caller_not_allowed" || r.Caller.Origin != nil {
		t.Errorf("a partner's gateway: %+v, %+v", v, r.Caller)
	}
}

// TestOriginDoesNotDecide: a rule of a service is about the workload that calls,
// and whoever stands behind it opens nothing.
func TestOriginDoesNotDecide(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	own := mtlstest.NewCA(t, "shop.example").CredentialFor(t, id(t, "gateway/edge"), time.Hour)
	token, err := jose.SignIdentity(own, &jose.Identity{
		Issuer: own.ID, Audience: id(t, "orders"), Issued: start, Expires: start.Add(time.Minute),
		Caller: identity.Caller{KeyID: "k", Scopes: []string{"orders.read"}, Token: &identity.Token{Issuer: issuer, Subject: "alice", Scopes: []string{"orders.read"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	r := f.gatewayCall(t, own, token)
	if v := f.Check(r); v.Allow || v.Reason != "caller_not_allowed" || r.Caller.KeyID != "" || r.Caller.Token != nil {
		t.Errorf("got %+v for %+v", v, r.Caller)
	}
}

// TestIdentityAllocations: with what is remembered, neither end of a gateway's call
// pays for more than the name of the map's key.
func TestIdentityAllocations(t *testing.T) {
	f := quiet(t)
	own := mtlstest.NewCA(t, "shop.example").CredentialFor(t, id(t, "gateway/edge"), time.Hour)
	keyed := f.edge(t, "5", "reader")
	token := f.edge(t, "5", "")
	token.Header = http.Header{"Authorization": {"Bearer " + f.idp.token(t, nil)}}
	to := id(t, "orders")
	for name, r := range map[string]*call.Request{"key": keyed, "token": token} {
		if v := f.Check(r); !v.Allow {
			t.Fatal(v)
		}
		if n := testing.AllocsPerRun(200, func() { _, _ = f.Vouch(r, own, to) }); n > 0 {
			t.Errorf("%s: Vouch allocates %v times", name, n)
		}
		said, err := f.Vouch(r, own, to)
		if err != nil {
			t.Fatal(err)
		}
		plain, in := f.gatewayCall(t, own, ""), f.gatewayCall(t, own, said)
		plain.Header = http.Header{}
		count := func(r *call.Request) float64 {
			return testing.AllocsPerRun(200, func() {
				f.Check(r)
				f.Done(r, call.Outcome{Status: 200, End: start})
			})
		}
		if without, with := count(plain), count(in); with > without {
			t.Errorf("%s: the sidecar allocates %v times, %v without an identity", name, with, without)
		}
	}
}

// BenchmarkIdentity is what it costs to say who calls, and to be told.
func BenchmarkIdentity(b *testing.B) {
	f := quiet(b)
	own := mtlstest.NewCA(b, "shop.example").CredentialFor(b, id(b, "gateway/edge"), time.Hour)
	r := f.edge(b, "5", "reader")
	f.Check(r)
	to := id(b, "orders")
	token, err := f.Vouch(r, own, to)
	if err != nil {
		b.Fatal(err)
	}
	in := f.gatewayCall(b, own, token)
	b.Run("Vouch, warm", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _ = f.Vouch(r, own, to)
		}
	})
	b.Run("Vouch, cold", func(b *testing.B) {
		snap := snapshot.Snapshot{Revision: 7}
		for b.Loop() {
			if err := f.Apply(&snap); err != nil {
				b.Fatal(err)
			}
			_, _ = f.Vouch(r, own, to)
		}
	})
	b.Run("Check, warm", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			f.Check(in)
			f.Done(in, call.Outcome{Status: 200, End: start})
		}
	})
	b.Run("verify", func(b *testing.B) {
		for b.Loop() {
			if _, err := jose.VerifyIdentity(token, own.Chain[0]); err != nil {
				b.Fatal(err)
			}
		}
	})
}
