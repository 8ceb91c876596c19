package control_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/identity"
)

func states(steps []api.Step) string {
	var out []string
	for _, s := range steps {
		out = append(out, s.Name+" "+string(s.State))
	}
	return strings.Join(out, ", ")
}

func TestWhyAsksTheRunningPolicy(t *testing.T) {
	t.Parallel()
	h := applied(t)
	for _, c := range []struct {
		name    string
		ask     api.ExplainParams
		allow   bool
		reason  string
		rule    string // that allows, or is nearest
		suggest bool
		steps   string
	}{
		{"allowed", api.ExplainParams{From: "web", To: "orders", Method: "GET", Path: "/orders/7"}, true, "allowed", "orders.allow[0]", false, "identity ok, channel ok, credential none, policy ok"},
		{"method", api.ExplainParams{From: "web", To: "orders", Method: "DELETE", Path: "/orders/7"}, false, "method_not_allowed", "orders.allow[0]", true, "identity ok, channel ok, credential none, policy NO"},
		{"path", api.ExplainParams{From: "web", To: "orders"}, false, "path_not_allowed", "orders.allow[0]", true, "identity ok, channel ok, credential none, policy NO"},
		{"caller", api.ExplainParams{From: "web", To: "db"}, false, "caller_not_allowed", "db.allow[0]", true, "identity ok, channel ok, credential none, policy NO"},
		{"tcp", api.ExplainParams{From: "orders", To: "db"}, true, "allowed", "db.allow[0]", false, "identity ok, channel ok, credential none, policy ok"},
		{"gateway", api.ExplainParams{From: "edge", To: "orders", Method: "GET", Path: "/orders"}, true, "allowed", "gateway.edge.routes[0]", false, "identity none, channel ok, credential none, policy ok"},
		{"stranger", api.ExplainParams{From: "spiffe://other.example/x", To: "db"}, false, "caller_not_allowed", "db.allow[0]", false, "identity none, channel ok, credential none, policy NO"},
		{"no inbound", api.ExplainParams{From: "orders", To: "web", Method: "GET", Path: "/"}, false, "no_rules", "", false, "identity ok, channel NO, credential none, policy NO"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			why, err := h.client.Why(t.Context(), c.ask)
			if err != nil {
				t.Fatal(err)
			}
			rule, line := why.Nearest.ID, why.Nearest.Line
			if c.allow {
				rule, line = why.Rule.ID, why.Rule.Line
			}
			if why.Allow != c.allow || why.Reason != c.reason || rule != c.rule || (line > 0) != (c.rule != "") || why.Revision != 1 {
				t.Errorf("got %+v", why)
			}
			if got := why.Suggestion.Text != ""; got != c.suggest {
				t.Errorf("suggestion %q", why.Suggestion.Text)
			}
			if diff := cmp.Diff(c.steps, states(why.Steps)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestWhyRefusesWhatIsNoCall(t *testing.T) {
	t.Parallel()
	h := applied(t)
	for name, c := range map[string]struct {
		ask  api.ExplainParams
		code fault.Code
	}{
		"nothing":        {api.ExplainParams{}, fault.BadRequest},
		"both":           {api.ExplainParams{Decision: "x", From: "web"}, fault.BadRequest},
		"no callee":      {api.ExplainParams{From: "web"}, fault.BadRequest},
		"unknown caller": {api.ExplainParams{From: "wbe", To: "orders"}, fault.NotFound},
		"unknown callee": {api.ExplainParams{From: "web", To: "order"}, fault.NotFound},
		"tcp path":       {api.ExplainParams{From: "web", To: "db", Path: "/"}, fault.BadRequest},
		"query":          {api.ExplainParams{From: "web", To: "orders", Path: "/a?b"}, fault.BadRequest},
		"method":         {api.ExplainParams{From: "web", To: "orders", Method: "get"}, fault.BadRequest},
		"id":             {api.ExplainParams{From: "spiffe://shop.example", To: "orders"}, fault.BadRequest},
		"decision":       {api.ExplainParams{Decision: "01ARZ3NDEKTSV4RRFFQ69G5FAV"}, fault.NotFound},
	} {
		if _, err := h.client.Why(t.Context(), c.ask); len(fault.All(err)) != 1 || fault.All(err)[0].Code != c.code {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhyBeforeTheFirstRevision(t *testing.T) {
	t.Parallel()
	h := serve(t)
	_, err := h.client.Why(t.Context(), api.ExplainParams{From: "web", To: "orders"})
	if f := fault.All(err); len(f) != 1 || f[0].Code != fault.NotFound || !strings.Contains(f[0].Hint, "parley apply") {
		t.Errorf("got %v", err)
	}
}

func id(t *testing.T, uri string) identity.ID {
	t.Helper()
	id, err := identity.ParseID(uri)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// call records both ends of a call of orders by web; the inbound end comes second.
func (m *memory) call(t *testing.T, method string, outcome audit.Outcome, reason string) (out, in *audit.Event) {
	t.Helper()
	const trace = "4bf92f3577b34da6a3ce929d0e0e4736"
	uid := 1000
	out = &audit.Event{
		Action: audit.Call, Outcome: audit.Allowed,
		Call:   &audit.CallFacts{End: "outbound", Protocol: "http", Listener: "web.calls.orders", Method: method, Path: "/orders/7"},
		Caller: &audit.Party{Service: "web", ID: id(t, "spiffe://shop.example/web"), PID: 7, UID: &uid, Exe: "/usr/bin/web"},
		Callee: &audit.Party{Service: "orders", ID: id(t, "spiffe://shop.example/orders")},
		Trace:  &audit.Trace{TraceID: trace, SpanID: "00f067aa0ba902b7"},
	}
	in = &audit.Event{
		Action: audit.Call, Outcome: outcome, Reason: reason,
		Call:     &audit.CallFacts{End: "inbound", Protocol: "http", Listener: "orders.inbound", Method: method, Path: "/orders/7"},
		Caller:   &audit.Party{Service: "web", ID: id(t, "spiffe://shop.example/web"), Serial: "0a"},
		Callee:   &audit.Party{Service: "orders", ID: id(t, "spiffe://shop.example/orders")},
		Decision: &audit.Decision{Rule: "orders.allow[0]", Revision: 1},
		TLS:      &audit.TLS{Version: "1.3", Group: "X25519MLKEM768", PeerID: "spiffe://shop.example/web"},
		Trace:    &audit.Trace{TraceID: trace, ParentID: "00f067aa0ba902b7", SpanID: "53995c3f42cd8ad8"},
	}
	m.record(t, out)
	m.record(t, in)
	m.record(t, &audit.Event{ // of the same trace, but another call
		Action: audit.Call, Outcome: audit.Allowed, Call: &audit.CallFacts{End: "outbound"},
		Trace: &audit.Trace{TraceID: trace, ParentID: "aaaaaaaaaaaaaaaa", SpanID: "bbbbbbbbbbbbbbbb"},
	})
	return out, in
}

func TestWhyOfADecisionShowsBothEnds(t *testing.T) {
	t.Parallel()
	h := applied(t)
	out, in := h.call(t, "DELETE", audit.Denied, "method_not_allowed")
	for name, c := range map[string]struct{ asked, other *audit.Event }{"callee": {in, out}, "caller": {out, in}} {
		why, err := h.client.Why(t.Context(), api.ExplainParams{Decision: c.asked.ID})
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{c.asked.ID, c.other.ID}, ids(t, why.Events)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
		if why.Allow || why.Decision.ID != in.ID || why.Decision.Allow || !why.Decision.Replayed || !why.Decision.Same || why.Decision.Rule != "orders.allow[0]" {
			t.Errorf("%s: %+v", name, why.Decision)
		}
		if why.From != "web" || why.To != "orders" || why.Method != "DELETE" || why.Suggestion.Text == "" || why.Nearest.ID != "orders.allow[0]" {
			t.Errorf("%s: %+v", name, why)
		}
		if diff := cmp.Diff("identity ok, channel ok, policy NO", states(why.Steps)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestWhyOfADecisionThatWouldBeAnotherNow(t *testing.T) {
	t.Parallel()
	h := applied(t)
	_, in := h.call(t, "GET", audit.Denied, "path_not_allowed")
	why, err := h.client.Why(t.Context(), api.ExplainParams{Decision: in.ID})
	if err != nil {
		t.Fatal(err)
	}
	if !why.Allow || why.Decision.Allow || why.Decision.Same || !why.Decision.Replayed || why.Rule.ID != "orders.allow[0]" {
		t.Errorf("%+v", why)
	}
}

func TestWhyAtTheEdgeUsesTheKeyAsItIsNow(t *testing.T) {
	t.Parallel()
	h := applied(t)
	key, err := h.client.CreateKey(t.Context(), api.KeyRequest{Name: "ci", Scopes: []string{"orders.read"}})
	if err != nil {
		t.Fatal(err)
	}
	e := &audit.Event{
		Action: audit.Call, Outcome: audit.Allowed, Reason: "allowed",
		Call:     &audit.CallFacts{End: "edge", Protocol: "http", Method: "GET", Path: "/orders/7"},
		Caller:   &audit.Party{KeyID: key.Key.ID, KeyName: "ci"},
		Callee:   &audit.Party{Service: "orders"},
		Decision: &audit.Decision{Rule: "gateway.edge.routes[0]", Revision: 1},
		TLS:      &audit.TLS{Version: "1.3"},
	}
	h.record(t, e)
	ask := func() *api.Explanation {
		t.Helper()
		why, err := h.client.Why(t.Context(), api.ExplainParams{Decision: e.ID})
		if err != nil {
			t.Fatal(err)
		}
		return why
	}
	if why := ask(); !why.Allow || !why.Decision.Same || why.To != "edge/routes[0]" || why.From != "key:"+key.Key.ID {
		t.Errorf("with a good key: %+v", why)
	}
	if err := h.client.RevokeKey(t.Context(), key.Key.ID); err != nil {
		t.Fatal(err)
	}
	if why := ask(); why.Allow || why.Reason != "no_credential" || !why.Decision.Allow || why.Decision.Same {
		t.Errorf("with a revoked key: %+v", why)
	}
}

// What was refused before a rule was asked has a suggestion of its own.
func TestWhySuggestsForOtherRefusals(t *testing.T) {
	t.Parallel()
	h := applied(t)
	key, err := h.client.CreateKey(t.Context(), api.KeyRequest{Name: "ci", Scopes: []string{"else"}})
	if err != nil {
		t.Fatal(err)
	}
	uid := 1001
	edge := func(reason, method, path string, caller audit.Party, rule string) audit.Event {
		e := audit.Event{Action: audit.Call, Reason: reason, Caller: &caller, Call: &audit.CallFacts{
			End: "edge", Protocol: "http", Listener: "gateway.edge", Host: "api.shop.example", Method: method, Path: path,
		}}
		if rule != "" {
			e.Decision = &audit.Decision{Rule: rule, Revision: 1}
		}
		return e
	}
	for name, c := range map[string]struct {
		event   audit.Event
		text    string
		command string
	}{
		"route":      {edge("route_not_found", "PUT", "/other", audit.Party{}, ""), "{match: {host: api.shop.example, path: /other, methods: [PUT]}, to: orders, require: ", ""},
		"taken now":  {edge("route_not_found", "GET", "/orders/7", audit.Party{}, ""), "", ""},
		"scope":      {edge("scope_missing", "GET", "/orders/7", audit.Party{KeyID: key.Key.ID}, "gateway.edge.routes[0]"), "", "parley key create NAME --scope orders.read"},
		"credential": {edge("no_credential", "GET", "/orders/7", audit.Party{}, "gateway.edge.routes[0]"), "", "parley key create NAME --scope orders.read"},
		"process": {audit.Event{
			Action: audit.ProcessRefused, Reason: "process_not_service", Caller: &audit.Party{PID: 9, UID: &uid, Exe: "/opt/other"},
			Call: &audit.CallFacts{End: "outbound", Protocol: "http", Listener: "web.calls.orders"},
		}, "runs_as: {user: 1001}", ""},
		"nobody knows": {audit.Event{
			Action: audit.ProcessRefused, Reason: "process_not_service", Caller: &audit.Party{},
			Call: &audit.CallFacts{End: "outbound", Protocol: "http", Listener: "web.calls.orders"},
		}, "", ""},
	} {
		e := c.event
		e.Outcome = audit.Denied
		h.record(t, &e)
		why, err := h.client.Why(t.Context(), api.ExplainParams{Decision: e.ID})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s := why.Suggestion
		if s.Command != c.command || (s.Text == "") != (c.text == "") || !strings.Contains(s.Text, c.text) || (s.File == "") != (c.text == "") {
			t.Errorf("%s: suggested %+v", name, s)
		}
	}
}

func TestWhyOfRefusalsBeforePolicy(t *testing.T) {
	t.Parallel()
	h := applied(t)
	uid := 1001
	for name, c := range map[string]struct {
		event audit.Event
		steps string
		text  string
	}{
		"process":   {audit.Event{Action: audit.ProcessRefused, Reason: "not_attested", Caller: &audit.Party{PID: 9, UID: &uid, Exe: "/tmp/x"}}, "process NO", "uid 1001"},
		"handshake": {audit.Event{Action: audit.HandshakeRefused, Reason: "expired"}, "identity NO", "expired"},
		"workload":  {audit.Event{Action: audit.WorkloadRefused, Reason: "not_attested"}, "process NO", "not_attested"},
		"issue":     {audit.Event{Action: audit.IssueRefused, Reason: "not_member"}, "identity NO", "not_member"},
		"route":     {audit.Event{Action: audit.Call, Reason: "route_not_found", Call: &audit.CallFacts{End: "edge"}, Caller: &audit.Party{}}, "identity none, channel none, credential none, gate NO", "no route"},
		"bad key":   {audit.Event{Action: audit.Call, Reason: "credentials_invalid", Call: &audit.CallFacts{End: "edge"}, Caller: &audit.Party{}}, "identity none, channel none, credential NO, gate NO", "not good"},
	} {
		e := c.event
		e.Outcome = audit.Denied
		h.record(t, &e)
		why, err := h.client.Why(t.Context(), api.ExplainParams{Decision: e.ID})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if why.Allow || why.Decision.Replayed || states(why.Steps) != c.steps || !strings.Contains(why.Steps[len(why.Steps)-1].Text, c.text) {
			t.Errorf("%s: %+v", name, why)
		}
	}
	applied, err := h.client.Events(t.Context(), api.ListEventsParams{Action: "config.applied"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.client.Why(t.Context(), api.ExplainParams{Decision: ids(t, applied.Items)[0]}); len(fault.All(err)) != 1 {
		t.Errorf("why of an act: %v", err)
	}
}
