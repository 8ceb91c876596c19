package gate_test

import (
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/gate"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/policy"
)

// A truth is one line of the truth table.
type truth struct {
	name string
	make func(*fixture, testing.TB) *call.Request
	// status is 0 where the call is allowed.
	status             int
	code, reason, rule string
}

// change is a request of newFixture, changed.
func change(base func(testing.TB) *call.Request, f func(*call.Request)) func(*fixture, testing.TB) *call.Request {
	return func(_ *fixture, tb testing.TB) *call.Request {
		r := base(tb)
		f(r)
		return r
	}
}

func atEdge(route, key string) func(*fixture, testing.TB) *call.Request {
	return func(f *fixture, tb testing.TB) *call.Request { return f.edge(tb, route, key) }
}

func from(tb testing.TB, r *call.Request, name string) { r.Peer.ID = id(tb, name) }

func truths(tb testing.TB) []truth {
	tb.Helper()
	return append(meshTruths(tb), edgeTruths()...)
}

func meshTruths(tb testing.TB) []truth {
	tb.Helper()
	same := func(*call.Request) {}
	in := func(f func(*call.Request)) func(*fixture, testing.TB) *call.Request { return change(inbound, f) }
	return []truth{
		{"outbound", change(outbound, same), 0, "", "outbound", ""},
		{"outbound tcp", change(outbound, func(r *call.Request) { r.Protocol, r.Method, r.Path = call.TCP, "", "" }), 0, "", "outbound", ""},
		{"no end", change(outbound, func(r *call.Request) { r.End = "" }), 403, "call_not_allowed", "unknown_end", ""},

		{"inbound", in(same), 0, "", "allowed", "orders.allow[0]"},
		{"inbound method", in(func(r *call.Request) { r.Method = "POST" }), 403, "call_not_allowed", "method_not_allowed", "orders.allow[0]"},
		{"inbound path", in(func(r *call.Request) { r.Path = "/admin" }), 403, "call_not_allowed", "path_not_allowed", "orders.allow[0]"},
		{"inbound caller", in(func(r *call.Request) { from(tb, r, "ledger") }), 403, "call_not_allowed", "caller_not_allowed", ""},
		{"inbound no rules", in(func(r *call.Request) { r.PolicyTarget = "web" }), 403, "call_not_allowed", "no_rules", ""},
		{"inbound no target", in(func(r *call.Request) { r.PolicyTarget = "elsewhere" }), 403, "call_not_allowed", "unknown_target", ""},
		{"inbound nobody", in(func(r *call.Request) { r.Peer = call.Peer{} }), 403, "call_not_allowed", "identity_missing", ""},
		{"inbound at its end", in(func(r *call.Request) { r.Peer.NotAfter = start }), 0, "", "allowed", "orders.allow[0]"},
		{"inbound expired", in(func(r *call.Request) { r.Peer.NotAfter = start.Add(-1) }), 403, "call_not_allowed", "credential_expired", ""},
		{"inbound no end of life", in(func(r *call.Request) { r.Peer.NotAfter = time.Time{} }), 403, "call_not_allowed", "credential_expired", ""},
		{"inbound stranger", in(func(r *call.Request) { from(tb, r, "stranger") }), 403, "call_not_allowed", "not_member", ""},
		{"inbound banned", in(func(r *call.Request) { from(tb, r, "banned") }), 403, "call_not_allowed", "banned", ""},
		{"inbound other domain", in(func(r *call.Request) { r.Peer.ID = otherDomain(tb) }), 403, "call_not_allowed", "trust_withdrawn", ""},
		{"inbound key is no identity", in(func(r *call.Request) {
			r.Peer, r.Header = call.Peer{}, http.Header{"X-Api-Key": {"x"}}
		}), 403, "call_not_allowed", "identity_missing", ""},
		{"inbound tcp", in(func(r *call.Request) {
			r.Protocol, r.PolicyTarget = call.TCP, "ledger"
			from(tb, r, "orders")
		}), 0, "", "allowed", "ledger.allow[0]"},
		{"inbound tcp ignores method", in(func(r *call.Request) { r.Protocol = call.TCP }), 403, "call_not_allowed", "path_not_allowed", "orders.allow[0]"},
	}
}

func edgeTruths() []truth {
	route0, route1, route2 := "gateway.edge.routes[0]", "gateway.edge.routes[1]", "gateway.edge.routes[2]"
	return []truth{
		{"edge no route", change(func(tb testing.TB) *call.Request { return (&fixture{}).edge(tb, "0", "") }, func(r *call.Request) {
			r.Target, r.PolicyTarget = "", ""
		}), 404, "route_not_found", "route_not_found", ""},
		{"edge other revision's route", atEdge("9", "reader"), 503, "not_ready", "route_changed", ""},
		{"edge route to elsewhere", func(f *fixture, tb testing.TB) *call.Request {
			r := f.edge(tb, "0", "")
			r.Target = "ledger"
			return r
		}, 503, "not_ready", "route_changed", ""},
		{"edge service as route", func(f *fixture, tb testing.TB) *call.Request {
			r := f.edge(tb, "0", "")
			r.PolicyTarget = "orders"
			return r
		}, 503, "not_ready", "route_changed", ""},

		{"public", atEdge("0", ""), 0, "", "allowed", route0},
		{"public good key", atEdge("0", "reader"), 0, "", "allowed", route0},
		{"public ended key", atEdge("0", "ended"), 0, "", "allowed", route0},
		{"public foreign key", atEdge("0", "foreign"), 0, "", "allowed", route0},

		{"key", atEdge("1", "reader"), 0, "", "allowed", route1},
		{"key none", atEdge("1", ""), 401, "credentials_required", "no_credential", route1},
		{"key other scope", atEdge("1", "writer"), 403, "call_not_allowed", "scope_missing", route1},
		{"key ended", atEdge("1", "ended"), 401, "credentials_invalid", "key_expired", ""},
		{"key unknown", atEdge("1", "unknown"), 401, "credentials_invalid", "key_unknown", ""},
		{"key malformed", atEdge("1", "malformed"), 401, "credentials_invalid", "key_malformed", ""},
		{"key foreign", atEdge("1", "foreign"), 401, "credentials_invalid", "key_malformed", ""},
		{"key twice", func(f *fixture, tb testing.TB) *call.Request {
			r := f.edge(tb, "1", "")
			r.Header = http.Header{"X-Api-Key": {f.keys["reader"], f.keys["reader"]}}
			return r
		}, 401, "credentials_invalid", "key_several", ""},
		{"two keys", func(f *fixture, tb testing.TB) *call.Request {
			r := f.edge(tb, "1", "reader")
			r.Header = http.Header{"X-Api-Key": {f.keys["reader"]}, "Authorization": {"Bearer " + f.keys["writer"]}}
			return r
		}, 401, "credentials_invalid", "key_several", ""},
		{"bearer", func(f *fixture, tb testing.TB) *call.Request {
			r := f.edge(tb, "1", "")
			r.Header = http.Header{"Authorization": {"Bearer " + f.keys["reader"]}}
			return r
		}, 0, "", "allowed", route1},
		{"no header", func(f *fixture, tb testing.TB) *call.Request {
			r := f.edge(tb, "1", "")
			r.Header = nil
			return r
		}, 401, "credentials_required", "no_credential", route1},

		{"key or public, none", atEdge("2", ""), 0, "", "allowed", route2},
		{"key or public, good", atEdge("2", "writer"), 0, "", "allowed", route2},
		{"key or public, unknown", atEdge("2", "unknown"), 401, "credentials_invalid", "key_unknown", ""},
		{"route without rules", atEdge("3", "reader"), 403, "call_not_allowed", "no_rules", ""},
	}
}

func otherDomain(tb testing.TB) identity.ID {
	tb.Helper()
	id, err := identity.ParseID("spiffe://other.example/web")
	if err != nil {
		tb.Fatal(err)
	}
	return id
}

func TestTruthTable(t *testing.T) {
	t.Parallel()
	for _, tt := range truths(t) {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			r := tt.make(f, t)
			before := f.Clock()
			v := f.Check(r)
			want := call.Verdict{
				Allow: tt.status == 0, ID: v.ID, Status: tt.status, Code: tt.code,
				Rule: tt.rule, Reason: tt.reason, Revision: 7,
			}
			if tt.status == 401 {
				want.Challenge = `Bearer realm="parley"`
			}
			if v != want || v != r.Verdict {
				t.Errorf("%+v\nwant %+v\nset  %+v", v, want, r.Verdict)
			}
			checkID(t, v.ID, before)
			f.Done(r, call.Outcome{Status: max(200, tt.status), End: start.Add(time.Millisecond)})
			events := f.log.take()
			if len(events) != 1 {
				t.Fatalf("%d events", len(events))
			}
			e := events[0]
			outcome := audit.Denied
			if want.Allow {
				outcome = audit.Allowed
			}
			if e.ID != v.ID || e.Class != audit.Access || e.Action != audit.Call || e.Outcome != outcome ||
				e.Reason != tt.reason || e.Decision.Rule != tt.rule || e.Decision.Revision != 7 {
				t.Errorf("event %+v", e)
			}
		})
	}
}

// Clock is the fixture's time.
func (f *fixture) Clock() time.Time { return f.clock.Now() }

var ulid = regexp.MustCompile(`^[0-7][0-9A-HJKMNP-TV-Z]{25}$`)

func checkID(t *testing.T, id string, at time.Time) {
	t.Helper()
	if !ulid.MatchString(id) || id[:10] != audit.NewID(at)[:10] {
		t.Errorf("id %q", id)
	}
}

// TestDenyTellsNothing holds what a denied client may see to a short list, and
// every bit of it to be there.
func TestDenyTellsNothing(t *testing.T) {
	t.Parallel()
	codes := []string{"call_not_allowed", "credentials_required", "credentials_invalid", "route_not_found", "not_ready", "audit_unavailable"}
	denied := 0
	for _, tt := range truths(t) {
		f := newFixture(t)
		v := f.Check(tt.make(f, t))
		if v.Allow {
			if v.Status != 0 || v.Code != "" || v.Challenge != "" {
				t.Errorf("%s: %+v", tt.name, v)
			}
			continue
		}
		denied++
		if v.ID == "" || v.Reason == "" || !slices.Contains([]int{401, 403, 404, 503}, v.Status) || !slices.Contains(codes, v.Code) {
			t.Errorf("%s: %+v", tt.name, v)
		}
		if (v.Status == 401) != (v.Challenge == `Bearer realm="parley"`) || v.Status != 401 && v.Challenge != "" {
			t.Errorf("%s: challenge %q", tt.name, v.Challenge)
		}
		seen := v.Code + v.Challenge
		for _, secret := range []string{"allow[", "routes[", "orders", "web", "expired", "unknown", "scope", "banned"} {
			if strings.Contains(seen, secret) {
				t.Errorf("%s: the client sees %q", tt.name, seen)
			}
		}
	}
	if denied < 20 {
		t.Errorf("only %d denials", denied)
	}
}

// TestBadKeysLookAlike: a client cannot tell a made-up key from one that ended.
func TestBadKeysLookAlike(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	var first call.Verdict
	for i, key := range []string{"unknown", "ended", "malformed", "foreign"} {
		v := f.Check(f.edge(t, "1", key))
		visible := call.Verdict{Allow: v.Allow, Status: v.Status, Code: v.Code, Challenge: v.Challenge}
		if i == 0 {
			first = visible
		}
		if visible != first || visible.Status != 401 {
			t.Errorf("%s: %+v", key, visible)
		}
	}
}

func TestCallerIsSet(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	tests := []struct {
		name string
		req  *call.Request
		want identity.Caller
	}{
		{"outbound", outbound(t), identity.Caller{Workload: id(t, "web")}},
		{"inbound", inbound(t), identity.Caller{Workload: id(t, "web")}},
		{"key", f.edge(t, "1", "reader"), identity.Caller{KeyID: f.keys["reader"][11:23], KeyName: "reader"}},
		{"scope missing", f.edge(t, "1", "writer"), identity.Caller{KeyID: f.keys["writer"][11:23], KeyName: "writer"}},
		{"ended", f.edge(t, "1", "ended"), identity.Caller{}},
		{"public", f.edge(t, "0", "reader"), identity.Caller{}},
	}
	for _, tt := range tests {
		tt.req.Caller = identity.Caller{KeyID: "stale", Workload: id(t, "ledger")}
		f.Check(tt.req)
		got := tt.req.Caller
		if got.Workload != tt.want.Workload || got.KeyID != tt.want.KeyID || got.KeyName != tt.want.KeyName {
			t.Errorf("%s: %+v", tt.name, got)
		}
	}
}

func TestNotReady(t *testing.T) {
	t.Parallel()
	check := func(name string, f *fixture, r *call.Request, status int) {
		t.Helper()
		if v := f.Check(r); v.Status != status || status == 503 && (v.Allow || v.Code != "not_ready" || v.Reason != "not_ready") {
			t.Errorf("%s: %+v", name, v)
		}
	}
	f := emptyFixture(t)
	for name, r := range map[string]*call.Request{"inbound": inbound(t), "outbound": outbound(t), "edge": f.edge(t, "0", "")} {
		check(name+" before all", f, r, 503)
	}
	f.SetTrust(f.trust.Load)
	check("trust alone", f, inbound(t), 503)
	if err := f.Apply(f.snap); err != nil {
		t.Fatal(err)
	}
	check("both", f, inbound(t), 0)
	f.trust.Store(nil)
	check("no trust now", f, inbound(t), 503)
	check("an edge needs none", f, f.edge(t, "0", ""), 0)
	f.SetTrust(nil)
	check("no trust at all", f, inbound(t), 503)
	if e := f.Explain(policy.Query{Target: "orders"}); e.Decision.Revision != 7 || len(e.Rules) != 1 {
		t.Errorf("%+v", e)
	}
}

func TestTrustIsAskedEachRequest(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	r := inbound(t)
	if v := f.Check(r); !v.Allow {
		t.Fatalf("%+v", v)
	}
	f.trust.Store(trust([]identity.ID{id(t, "orders")}))
	if v := f.Check(r); v.Allow || v.Reason != gate.ReasonNotMember {
		t.Errorf("out of the mesh: %+v", v)
	}
	f.trust.Store(trust([]identity.ID{id(t, "web")}))
	if v := f.Check(r); !v.Allow {
		t.Errorf("back in the mesh: %+v", v)
	}
	f.clock.move(2 * time.Hour)
	if v := f.Check(r); v.Allow || v.Reason != gate.ReasonExpired {
		t.Errorf("on a connection whose certificate ended: %+v", v)
	}
}

func TestKeyEndsWithoutANewRevision(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	if v := f.Check(f.edge(t, "1", "reader")); !v.Allow {
		t.Fatalf("%+v", v)
	}
	f.clock.move(time.Hour)
	if v := f.Check(f.edge(t, "1", "reader")); v.Allow || v.Reason != gate.ReasonKeyExpired {
		t.Errorf("%+v", v)
	}
}
