package control_test

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
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

// text is the last step's, with what to do.
func text(steps []api.Step) string {
	s := steps[len(steps)-1]
	return s.Text + " | " + s.Help
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

const trace = "4bf92f3577b34da6a3ce929d0e0e4736"

// callOf is both ends of a call of orders by web.
func callOf(t *testing.T, method string, outcome audit.Outcome, reason string) (out, in *audit.Event) {
	t.Helper()
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
	return out, in
}

// call records both ends of a call of orders by web; the inbound end comes second.
func (m *memory) call(t *testing.T, method string, outcome audit.Outcome, reason string) (out, in *audit.Event) {
	t.Helper()
	out, in = callOf(t, method, outcome, reason)
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

// A caller without TLS that was let in is explained as one that no rule let in, and
// no rule is asked about it now.
func TestWhyOfPlaintext(t *testing.T) {
	t.Parallel()
	h := applied(t)
	e := &audit.Event{
		Action: audit.Call, Outcome: audit.Allowed, Reason: "plaintext_observed",
		Call:   &audit.CallFacts{End: "inbound", Protocol: "http", Listener: "orders.inbound", Method: "GET", Path: "/orders/7"},
		Caller: &audit.Party{Address: "10.0.4.17:51834"}, Callee: &audit.Party{Service: "orders", ID: id(t, "spiffe://shop.example/orders")},
		Decision: &audit.Decision{Revision: 1},
	}
	h.record(t, e)
	why, err := h.client.Why(t.Context(), api.ExplainParams{Decision: e.ID})
	if err != nil {
		t.Fatal(err)
	}
	if !why.Allow || !why.Decision.Allow || why.Decision.Replayed || why.Rule.ID+why.Nearest.ID != "" || why.FromID != "" || why.To != "orders" {
		t.Errorf("%+v", why)
	}
	if diff := cmp.Diff("identity none, channel none, policy none", states(why.Steps)); diff != "" {
		t.Error(diff)
	}
	if got := text(why.Steps); !strings.Contains(got, "by no rule, since orders observes plaintext") || !strings.Contains(got, "into the mesh") || !strings.Contains(why.Steps[1].Text, "plaintext") {
		t.Errorf("%+v", why.Steps)
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

// A call that was allowed and failed: what failed is named with its address, how it
// stands now, and what to do, from whichever end one asks.
func TestWhyOfACallThatFailed(t *testing.T) {
	t.Parallel()
	closed := api.ListenerStatus{Name: "orders.inbound", State: api.StateFailed, Note: "the port is held", Help: "see who has it"}
	for name, c := range map[string]struct {
		out, in    string // the errors that the ends recorded
		upstream   string // of the callee's end
		down       api.ServiceStatus
		listener   api.ListenerStatus
		text, help string
	}{
		"no application": {
			"", "upstream_refused", "127.0.0.1:8451",
			api.ServiceStatus{Name: "orders", State: api.StateFailed, Note: "nothing listens on 127.0.0.1:8451", Help: "start it"},
			api.ListenerStatus{Name: "orders.inbound", State: api.StateOK},
			"it was allowed, and then the application of orders at 127.0.0.1:8451 took no connection (upstream_refused); now failed: nothing listens on 127.0.0.1:8451", "start it",
		},
		"an application that is back": {
			"", "upstream_refused", "127.0.0.1:8451",
			api.ServiceStatus{},
			closed,
			"it was allowed, and then the application of orders at 127.0.0.1:8451 took no connection (upstream_refused); now ok", "see who listens: ss -ltnp 'sport = :8451'",
		},
		"over TCP both ends fail": {
			"upstream_closed", "upstream_refused", "unix:/run/o",
			api.ServiceStatus{},
			closed,
			"it was allowed, and then the application of orders at unix:/run/o took no connection (upstream_refused); now ok", "parley explain upstream_refused",
		},
		"nothing on record": {
			"", "upstream_timeout", "",
			api.ServiceStatus{},
			closed,
			"it was allowed, and then the application of orders at an address that is not on record did not answer in time (upstream_timeout); now ok", "parley explain upstream_timeout",
		},
		"no inbound": {
			"upstream_refused", "", "",
			api.ServiceStatus{},
			closed,
			"it was allowed, and then the inbound of orders at 127.0.0.1:9443 took no connection (upstream_refused); now failed: the port is held", "see who has it",
		},
		"an inbound elsewhere": {
			"upstream_refused", "", "",
			api.ServiceStatus{},
			api.ListenerStatus{},
			"it was allowed, and then the inbound of orders at 127.0.0.1:9443 took no connection (upstream_refused)", "see who listens: ss -ltnp 'sport = :9443'",
		},
		"the client left": {
			"", "client_closed", "127.0.0.1:8451",
			api.ServiceStatus{},
			closed,
			"it was allowed and then failed: client_closed", "parley explain client_closed",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := applied(t)
			h.runtime.down, h.runtime.listeners = c.down, []api.ListenerStatus{c.listener}
			out, in := callOf(t, "GET", audit.Allowed, "allowed")
			out.Call.Error, out.Call.Upstream, in.Call.Error, in.Call.Upstream = c.out, "127.0.0.1:9443", c.in, c.upstream
			asked := []*audit.Event{out, in}
			if c.in == "" {
				asked = asked[:1] // it never got there
			}
			for _, e := range asked {
				h.record(t, e)
			}
			for _, e := range asked {
				why, err := h.client.Why(t.Context(), api.ExplainParams{Decision: e.ID})
				if err != nil {
					t.Fatal(err)
				}
				step := why.Steps[len(why.Steps)-1]
				if diff := cmp.Diff(api.Step{Name: "call", State: api.StepNo, Text: c.text, Help: c.help}, step); diff != "" {
					t.Errorf("%s end: %s", e.Call.End, diff)
				}
				if !why.Decision.Allow || why.Decision.Error == "" {
					t.Errorf("%s end: %+v", e.Call.End, why.Decision)
				}
			}
		})
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

// private is what an event says of that person; nil of nobody.
func private(subject string) *audit.Private {
	if subject == "" {
		return nil
	}
	p := new(audit.Private)
	p.Hold(subject, "192.0.2.7:4711")
	return p
}

// What was pruned is shown as that, and cannot be explained any more.
func TestWhyOfWhatWasPruned(t *testing.T) {
	t.Parallel()
	h := applied(t)
	h.events = append(h.events, control.StoredEvent{Entry: audit.Entry{Log: "agent", Index: 4, Leaf: audit.Hash{1}}, Position: int64(len(h.events) + 1)})
	got, err := h.client.Event(t.Context(), "pruned")
	if err != nil || !got.Pruned || got.Event != nil || got.Index != 4 {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := h.client.Why(t.Context(), api.ExplainParams{Decision: "pruned"}); len(fault.All(err)) != 1 || fault.All(err)[0].Code != fault.NotFound {
		t.Errorf("%v", err)
	}
	list, err := h.client.Events(t.Context(), api.ListEventsParams{})
	if err != nil || !list.Items[len(list.Items)-1].Pruned {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestWhyOfTokens: a decision about a token is made again from the record of it.
func TestWhyOfTokens(t *testing.T) {
	t.Parallel()
	h := applied(t)
	for name, tt := range map[string]struct {
		party          audit.Party
		subject        string
		reason         string
		replayed, same bool
		step           string
	}{
		"allowed":        {audit.Party{Issuer: "https://id.shop.example", Audience: "x orders", Scopes: "orders.read a"}, "alice", "allowed", true, true, `token of "alice" from "https://id.shop.example"`},
		"other audience": {audit.Party{Issuer: "https://id.shop.example", Audience: "billing", Scopes: "orders.read"}, "alice", "jwt_audience", true, true, "another audience"},
		"no scope":       {audit.Party{Issuer: "https://id.shop.example", Audience: "orders"}, "alice\nroot", "scope_missing", true, true, `"alice\nroot"`},
		"erased":         {audit.Party{Issuer: "https://id.shop.example", Audience: "orders", Person: audit.Commitment{1}}, "", "scope_missing", true, true, "token of an erased person from"},
		"cut":            {audit.Party{Issuer: "https://id.shop.example", Audience: "orders", Scopes: "a b…"}, "alice", "scope_missing", false, false, "lacks a scope"},
	} {
		e := &audit.Event{
			Action: audit.Call, Outcome: audit.Denied, Reason: tt.reason,
			Call:   &audit.CallFacts{End: "edge", Protocol: "http", Method: "GET", Path: "/orders/7"},
			Caller: &tt.party, Callee: &audit.Party{Service: "orders"},
			Decision: &audit.Decision{Rule: "gateway.edge.routes[0]", Revision: 1}, Private: private(tt.subject),
		}
		if tt.reason == "allowed" {
			e.Outcome = audit.Allowed
		}
		h.record(t, e)
		why, err := h.client.Why(t.Context(), api.ExplainParams{Decision: e.ID})
		if err != nil {
			t.Fatal(err)
		}
		if why.Decision.Replayed != tt.replayed || why.Decision.Same != tt.same {
			t.Errorf("%s: replayed %t, the same %t: %s", name, why.Decision.Replayed, why.Decision.Same, why.Reason)
		}
		var steps string
		for _, s := range why.Steps {
			steps += s.Text + "\n"
		}
		if !strings.Contains(steps, tt.step) {
			t.Errorf("%s: %s", name, steps)
		}
	}
}

// TestWhyNamesWhomTheGatewayLetIn: at a service's end the gateway is the caller and
// decides, and whom it let in is told beside it.
func TestWhyNamesWhomTheGatewayLetIn(t *testing.T) {
	t.Parallel()
	h := applied(t)
	for name, tt := range map[string]struct {
		party   audit.Party
		subject string
		step    string
	}{
		"token":  {audit.Party{Issuer: "https://id.shop.example"}, "alice", `gateway/edge let in and signed for: token of "alice" from "https://id.shop.example"`},
		"key":    {audit.Party{KeyID: "k", KeyName: "ci"}, "", `gateway/edge let in and signed for: API key "ci" (k)`},
		"nobody": {audit.Party{}, "", ""},
	} {
		tt.party.Service, tt.party.ID = "gateway/edge", id(t, "spiffe://shop.example/gateway/edge")
		e := &audit.Event{
			Action: audit.Call, Outcome: audit.Denied, Reason: "path_not_allowed",
			Call:   &audit.CallFacts{End: "inbound", Protocol: "http", Method: "GET", Path: "/admin"},
			Caller: &tt.party, Callee: &audit.Party{Service: "orders"}, Decision: &audit.Decision{Revision: 1}, Private: private(tt.subject),
		}
		h.record(t, e)
		why, err := h.client.Why(t.Context(), api.ExplainParams{Decision: e.ID})
		if err != nil {
			t.Fatal(err)
		}
		var step string
		for _, s := range why.Steps {
			if s.Name == "origin" {
				step = s.Text
			}
		}
		if step != tt.step || why.From != "gateway/edge" || !why.Decision.Replayed {
			t.Errorf("%s: %q from %s, %+v", name, step, why.From, why.Decision)
		}
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
		"process":       {audit.Event{Action: audit.ProcessRefused, Reason: "not_attested", Caller: &audit.Party{PID: 9, UID: &uid, Exe: "/tmp/x"}}, "process NO", "uid 1001"},
		"unseen":        {audit.Event{Action: audit.ProcessRefused, Reason: "not_attested", Caller: &audit.Party{UID: &uid}, Call: &audit.CallFacts{End: "outbound", Listener: "web.calls.orders"}}, "process NO", "a process of uid 1001 is not accepted at web.calls.orders, where only web calls from: not_attested | if it is web, correct runs_as of web"},
		"handshake":     {audit.Event{Action: audit.HandshakeRefused, Reason: "expired"}, "identity NO", "expired"},
		"workload":      {audit.Event{Action: audit.WorkloadRefused, Reason: "not_attested"}, "process NO", "not_attested"},
		"issue":         {audit.Event{Action: audit.IssueRefused, Reason: "not_member"}, "identity NO", "not_member"},
		"route":         {audit.Event{Action: audit.Call, Reason: "route_not_found", Call: &audit.CallFacts{End: "edge"}, Caller: &audit.Party{}}, "identity none, channel none, credential none, gate NO", "no route"},
		"old key":       {audit.Event{Action: audit.Call, Reason: "key_expired", Call: &audit.CallFacts{End: "edge"}, Caller: &audit.Party{KeyID: "k"}}, "identity none, channel none, credential NO, gate NO", "not good"},
		"forged":        {audit.Event{Action: audit.Call, Reason: "jwt_signature", Message: `unverified, it claims issuer "https://id"`, Call: &audit.CallFacts{End: "edge"}, Caller: &audit.Party{}}, "identity none, channel none, credential NO, gate NO", "not good"},
		"old token":     {audit.Event{Action: audit.Call, Reason: "jwt_expired", Call: &audit.CallFacts{End: "edge"}, Caller: &audit.Party{Issuer: "https://id"}, Private: private("alice")}, "identity none, channel none, credential NO, gate NO", "not good"},
		"no keys":       {audit.Event{Action: audit.Call, Reason: "jwks_unavailable", Call: &audit.CallFacts{End: "edge"}, Caller: &audit.Party{}}, "identity none, channel none, credential NO, gate NO", "were not there"},
		"forged origin": {audit.Event{Action: audit.Call, Reason: "identity_key", Message: "for another certificate", Call: &audit.CallFacts{End: "inbound"}, Caller: &audit.Party{ID: id(t, "spiffe://shop.example/gateway/edge")}}, "identity ok, channel none, origin NO, gate NO", "a gateway's word for its caller is not good"},
		"bad key":       {audit.Event{Action: audit.Call, Reason: "credentials_invalid", Call: &audit.CallFacts{End: "edge"}, Caller: &audit.Party{}}, "identity none, channel none, credential NO, gate NO", "not good"},
	} {
		e := c.event
		e.Outcome = audit.Denied
		h.record(t, &e)
		why, err := h.client.Why(t.Context(), api.ExplainParams{Decision: e.ID})
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if why.Allow || why.Decision.Replayed || states(why.Steps) != c.steps || !strings.Contains(text(why.Steps), c.text) {
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

// Of a service without a sidecar nothing is known: that it would be denied is no
// answer.
func TestWhyOfAForeignService(t *testing.T) {
	t.Parallel()
	h := serve(t)
	foreign := strings.Replace(meshFile, "gateway:\n", "  partner:\n    runs_as: {user: partner}\n    endpoints: [\"10.0.0.7:9443\"]\ngateway:\n", 1)
	if _, err := h.client.Apply(t.Context(), request(foreign)); err != nil {
		t.Fatal(err)
	}
	_, err := h.client.Why(t.Context(), api.ExplainParams{From: "web", To: "partner"})
	if all := fault.All(err); len(all) != 1 || all[0].Code != fault.BadRequest || !strings.Contains(all[0].Message, "decides itself") {
		t.Errorf("got %v", err)
	}
}

// A banned caller's handshake is refused, which its own end sees as no connection.
func TestWhyOfACallOfABannedCaller(t *testing.T) {
	t.Parallel()
	h := applied(t)
	h.runtime.listeners = []api.ListenerStatus{{Name: "orders.inbound", State: api.StateOK}}
	failed := func(at time.Time) string {
		e, _ := callOf(t, "GET", audit.Allowed, "allowed")
		e.Time, e.Call.Error, e.Call.Upstream = at, "upstream_refused", "127.0.0.1:9443"
		h.record(t, e)
		return e.ID
	}
	want := func(decision, text, help string) {
		t.Helper()
		why, err := h.client.Why(t.Context(), api.ExplainParams{Decision: decision})
		if err != nil {
			t.Fatal(err)
		}
		if step := why.Steps[len(why.Steps)-1]; step.Text != text || step.Help != help {
			t.Errorf("%q, %q", step.Text, step.Help)
		}
	}
	const refused = "it was allowed, and then the inbound of orders at 127.0.0.1:9443 took no connection (upstream_refused)"
	if _, err := h.client.Ban(t.Context(), api.BanRequest{Identity: "web"}); err != nil {
		t.Fatal(err)
	}
	want(failed(start), refused+"; now ok", "see who listens: ss -ltnp 'sport = :9443'") // before that
	banned := failed(time.Now())
	want(banned, refused+", since web was banned", "see who is: parley ban")
	if _, err := h.client.Unban(t.Context(), "web"); err != nil {
		t.Fatal(err)
	}
	want(banned, refused+"; now ok", "see who listens: ss -ltnp 'sport = :9443'")
}
