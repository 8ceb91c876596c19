package gate_test

import (
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/call"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/snapshot"
)

var sameID = cmp.Comparer(func(a, b identity.ID) bool { return a == b })

func TestEventOfAnInboundCall(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	r := inbound(t)
	v := f.Check(r)
	f.Done(r, call.Outcome{Status: 201, BytesIn: 3, BytesOut: 4, End: start.Add(1500 * time.Microsecond), Upstream: "127.0.0.1:8080", Error: "client_closed", GRPC: new(int)})
	want := []*audit.Event{{
		Schema: 1, ID: v.ID, Time: start, Class: audit.Access, Action: audit.Call, Outcome: audit.Allowed, Reason: "allowed",
		Host: "host-1", Reporter: "agent",
		Call: &audit.CallFacts{
			End: "inbound", Protocol: "http", Listener: "orders.inbound", RequestID: "req-1", ID: strings.Repeat("b", 16), Method: "GET", Host: "orders", Path: "/orders/7",
			Status: 201, GRPCStatus: new(int), Error: "client_closed", BytesIn: 3, BytesOut: 4, Duration: 1500, Upstream: "127.0.0.1:8080",
		},
		Caller:   &audit.Party{Service: "web", ID: id(t, "web"), Serial: "0a", Fingerprint: "0b", Address: "10.0.0.9:40000"},
		Callee:   &audit.Party{Service: "orders", ID: id(t, "orders")},
		Decision: &audit.Decision{Rule: "orders.allow[0]", Revision: 7},
		TLS: &audit.TLS{
			Version: "1.3", Cipher: "TLS_AES_128_GCM_SHA256", Group: "X25519MLKEM768", ALPN: "h2", Connection: "0c",
			PeerID: "spiffe://shop.example/web", PeerSerial: "0a",
		},
		Trace: &audit.Trace{TraceID: strings.Repeat("a", 32), SpanID: strings.Repeat("c", 16), ParentID: strings.Repeat("b", 16)},
	}}
	if diff := cmp.Diff(want, f.log.take(), sameID); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestEventOfAnOutboundCall(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	r := outbound(t)
	v := f.Check(r)
	f.clock.move(time.Second)
	f.Done(r, call.Outcome{
		Status: 200, Upstream: "10.0.0.2:9443", UpstreamTLS: call.TLS{Version: "1.3", Resumed: true},
		UpstreamPeer: call.Peer{ID: id(t, "orders"), Serial: "1a", Fingerprint: "1b"},
	})
	root := 0
	want := []*audit.Event{{
		Schema: 1, ID: v.ID, Time: start, Class: audit.Access, Action: audit.Call, Outcome: audit.Allowed, Reason: "outbound",
		Host: "host-1", Reporter: "agent",
		Call: &audit.CallFacts{
			End: "outbound", Protocol: "http", Listener: "web.calls.orders", RequestID: "req-1", Method: "GET", Host: "orders", Path: "/orders/7",
			Status: 200, Duration: 1_000_000, Upstream: "10.0.0.2:9443",
		},
		Caller:      &audit.Party{Service: "web", ID: id(t, "web"), Address: "127.0.0.1:41000", PID: 42, UID: &root, Exe: "/opt/web"},
		Callee:      &audit.Party{Service: "orders", ID: id(t, "orders"), Serial: "1a", Fingerprint: "1b", Address: "10.0.0.2:9443"},
		Decision:    &audit.Decision{Revision: 7},
		UpstreamTLS: &audit.TLS{Version: "1.3", Resumed: true, PeerID: "spiffe://shop.example/orders", PeerSerial: "1a"},
	}}
	if diff := cmp.Diff(want, f.log.take(), sameID); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestEventOfAnEdgeCall(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, tt := range []struct{ key, reason string }{{"reader", "allowed"}, {"ended", "key_expired"}, {"unknown", "key_unknown"}} {
		r := f.edge(t, "1", tt.key)
		v := f.Check(r)
		f.Done(r, call.Outcome{Status: max(200, v.Status), End: start})
		want := &audit.Party{Address: "192.0.2.1:5000"}
		if tt.key != "unknown" {
			want.KeyID, want.KeyName = f.keys[tt.key][11:23], tt.key
		}
		events := f.log.take()
		if len(events) != 1 || events[0].Reason != tt.reason || events[0].Callee.Service != "orders" {
			t.Fatalf("%s: %+v", tt.key, events)
		}
		if diff := cmp.Diff(want, events[0].Caller, sameID); diff != "" {
			t.Errorf("%s: %s", tt.key, diff)
		}
	}
}

// TestNoSecretIsRecorded plants keys wherever a client can and reads every
// event and log line.
func TestNoSecretIsRecorded(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for _, route := range []string{"0", "1", "2", "9"} {
		for name := range f.keys {
			r := f.edge(t, route, name)
			f.Check(r)
			f.Done(r, call.Outcome{})
			r.Verdict = call.Verdict{}
			f.Refuse(r, "header_refused", errors.New("too many fields"))
		}
	}
	text := strings.Join(f.log.bodies, "\n") + f.logged.String() + string(f.metrics.Append(nil))
	for name, key := range f.keys {
		if strings.Contains(text, key) || len(key) > 30 && strings.Contains(text, key[24:]) {
			t.Errorf("the key %s is in the record", name)
		}
	}
	if len(f.log.bodies) != 4*2*len(f.keys) {
		t.Errorf("%d events", len(f.log.bodies))
	}
}

func TestExactlyOneEvent(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		run  func(*fixture, *call.Request)
		want int
	}{
		{"done", func(f *fixture, r *call.Request) { f.Check(r); f.Done(r, call.Outcome{}) }, 1},
		{"done twice", func(f *fixture, r *call.Request) {
			f.Check(r)
			f.Done(r, call.Outcome{})
			f.Done(r, call.Outcome{})
		}, 1},
		{"not checked", func(f *fixture, r *call.Request) { f.Done(r, call.Outcome{}) }, 0},
		{"made-up id", func(f *fixture, r *call.Request) {
			r.Verdict = call.Verdict{ID: audit.NewID(start), Allow: true}
			f.Done(r, call.Outcome{})
		}, 0},
		{"refused", func(f *fixture, r *call.Request) { f.Refuse(r, "path_refused", nil) }, 1},
		{"refused, done", func(f *fixture, r *call.Request) {
			f.Refuse(r, "path_refused", nil)
			f.Done(r, call.Outcome{})
		}, 1},
		{"checked, refused, done", func(f *fixture, r *call.Request) {
			id := f.Check(r).ID
			if v := f.Refuse(r, "path_refused", nil); v.ID != id {
				r.RequestID = "another id"
			}
			f.Done(r, call.Outcome{})
		}, 1},
		{"done, refused", func(f *fixture, r *call.Request) {
			id := f.Check(r).ID
			f.Done(r, call.Outcome{})
			if v := f.Refuse(r, "path_refused", nil); v.ID == id {
				r.RequestID = "the same id"
			}
		}, 2},
		{"two checks", func(f *fixture, r *call.Request) {
			other := *r
			f.Check(r)
			f.Check(&other)
			f.Done(&other, call.Outcome{})
			f.Done(r, call.Outcome{})
		}, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			f := newFixture(t)
			r := inbound(t)
			tt.run(f, r)
			events, ids := f.log.take(), map[string]bool{}
			for _, e := range events {
				ids[e.ID] = true
			}
			if len(events) != tt.want || len(ids) != tt.want || f.Open() != 0 || r.RequestID != "req-1" {
				t.Errorf("%d events, %d ids, %d open, %s", len(events), len(ids), f.Open(), r.RequestID)
			}
		})
	}
}

func TestConcurrentDoneRecordsOnce(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	const calls, racers = 50, 8
	var wg sync.WaitGroup
	for range calls {
		r := inbound(t)
		wg.Go(func() {
			f.Check(r)
			var race sync.WaitGroup
			for range racers {
				race.Go(func() { f.Done(r, call.Outcome{Status: 200}) })
			}
			race.Wait()
		})
	}
	wg.Wait()
	ids := map[string]bool{}
	for _, e := range f.log.take() {
		if ids[e.ID] {
			t.Errorf("%s is recorded twice", e.ID)
		}
		ids[e.ID] = true
	}
	if len(ids) != calls || f.Open() != 0 {
		t.Errorf("%d events, %d open", len(ids), f.Open())
	}
}

func TestNothingIsAllowedThatCannotBeRecorded(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	request := func() (*call.Request, call.Verdict) {
		r := inbound(t)
		return r, f.Check(r)
	}
	under, v := request()
	if !v.Allow {
		t.Fatalf("%+v", v)
	}
	f.log.setFail(true)
	f.Done(under, call.Outcome{})
	for _, r := range []*call.Request{inbound(t), outbound(t), f.edge(t, "0", "")} {
		if v := f.Check(r); v.Allow || v.Status != 503 || v.Code != "audit_unavailable" || v.Reason != "audit_unavailable" || v.ID == "" {
			t.Errorf("%s while recording fails: %+v", r.End, v)
		}
		f.Done(r, call.Outcome{Status: 503})
	}
	f.log.setFail(false)
	last, v := request()
	if v.Allow {
		t.Errorf("before an event was recorded: %+v", v)
	}
	f.Done(last, call.Outcome{Status: 503})
	if _, v := request(); !v.Allow {
		t.Errorf("after an event was recorded: %+v", v)
	}
	if n := strings.Count(f.logged.String(), "level=ERROR"); n != 1 || strings.Count(f.logged.String(), "recorded again") != 1 {
		t.Errorf("logged %s", f.logged)
	}
}

// Who takes a gap for it is not refused what cannot be recorded, and nothing more
// than that: a rule's refusal is one all the same.
func TestAGapIsTakenForWhatCannotBeRecorded(t *testing.T) {
	t.Parallel()
	f := newFixture(t)
	for i := range f.snap.Services {
		if s := &f.snap.Services[i]; s.Name == "orders" {
			s.Audit = &snapshot.Audit{Gap: true}
		}
	}
	f.snap.Gateways[0].Audit = &snapshot.Audit{Gap: true}
	if err := f.Apply(f.snap); err != nil {
		t.Fatal(err)
	}
	f.log.setFail(true)
	first := inbound(t)
	f.Check(first)
	f.Done(first, call.Outcome{})
	for _, r := range []*call.Request{inbound(t), f.edge(t, "0", "")} {
		if v := f.Check(r); !v.Allow {
			t.Errorf("%s: %+v", r.End, v)
		}
		f.Done(r, call.Outcome{Status: 200})
	}
	denied := inbound(t)
	denied.Method = "DELETE"
	if v := f.Check(denied); v.Allow || v.Status != 403 || v.Reason != "method_not_allowed" {
		t.Errorf("a denied call: %+v", v)
	}
	f.Done(denied, call.Outcome{Status: 403})
	if v := f.Refuse(inbound(t), "process_not_service", nil); v.Allow || v.Status != 403 {
		t.Errorf("a refused process: %+v", v)
	}
	other := outbound(t) // web's, which says nothing of it
	if v := f.Check(other); v.Allow || v.Status != 503 {
		t.Errorf("another service: %+v", v)
	}
	f.Done(other, call.Outcome{Status: 503})
	if n := f.Open(); n != 0 {
		t.Errorf("%d calls are open", n)
	}
}
