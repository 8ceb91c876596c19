package xtest

import (
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control/api"
	"github.com/parleymesh/parley/internal/store"
)

// feed collects events as the entries of log that come next.
func feed(t testing.TB, s *store.Store, log string, events ...*audit.Event) {
	t.Helper()
	next, err := s.Cursor(t.Context(), log)
	if err != nil {
		t.Fatal(err)
	}
	all := make([]audit.Entry, len(events))
	for i, e := range events {
		index := int(next) + i
		e.ID, e.Class = fmt.Sprintf("%s-%d", log, index), audit.Access
		all[i] = Entry(t, log, index, e)
	}
	if err := s.Collect(t.Context(), log, all); err != nil {
		t.Fatal(err)
	}
}

// called is a call's event at one of its ends.
func called(end, from, to string, at time.Time, outcome audit.Outcome) *audit.Event {
	return &audit.Event{
		Time: at, Action: audit.Call, Outcome: outcome, TLS: &audit.TLS{Version: "1.3"},
		Call:   &audit.CallFacts{End: end, Protocol: "http", Listener: to + ".inbound"},
		Caller: &audit.Party{Service: from}, Callee: &audit.Party{Service: to},
	}
}

// failing is e with why nobody answered, sent e with a connection to its callee.
func failing(why string, e *audit.Event) *audit.Event { e.Call.Error = why; return e }

func sent(e *audit.Event) *audit.Event { e.UpstreamTLS = &audit.TLS{Version: "1.3"}; return e }

// stranger is a process that is not the caller.
func stranger(from, to string, at time.Time) *audit.Event {
	e := plainly(called("outbound", "", to, at, audit.Denied))
	e.Action, e.Call.Listener = audit.ProcessRefused, from+".calls."+to
	return e
}

func plainly(e *audit.Event) *audit.Event { e.TLS = nil; return e }

func testEdges(t *testing.T, db Database) {
	s := db.open(t, &at{now: noon})
	minute := noon.Truncate(time.Minute)
	edge := called("edge", "", "web", minute, audit.Denied)
	edge.Call.Listener, edge.Caller = "gateway.front", &audit.Party{KeyID: "k", Address: "10.0.0.1:1"}
	feed(t, s, "host1-00000001",
		called("inbound", "web", "orders", minute, audit.Allowed),
		called("inbound", "web", "orders", minute.Add(59*time.Second), audit.Denied),
		called("inbound", "web", "orders", minute.Add(-time.Microsecond), audit.Allowed), // the minute before
		called("inbound", "orders", "db", minute.Add(time.Second), audit.Allowed),
		plainly(called("inbound", "orders", "db", minute.Add(time.Minute), audit.Allowed)),
		plainly(called("inbound", "old", "db", minute, audit.Denied)),
		edge,
		// Allowed and not answered, or not even sent.
		failing("upstream_refused", called("inbound", "web", "orders", minute.Add(2*time.Second), audit.Allowed)),
		failing("upstream_timeout", called("outbound", "web", "cart", minute, audit.Allowed)),
		failing("credential_missing", called("outbound", "web", "cart", minute, audit.Allowed)),
		failing("upstream_closed", sent(called("outbound", "web", "orders", minute, audit.Allowed))), // its other end tells
		failing("client_closed", called("inbound", "orders", "db", minute, audit.Allowed)),
		// Refused at the caller's end.
		stranger("web", "cart", minute.Add(3*time.Second)),
		stranger("cron", "orders", minute),
		// What counts nowhere: the other end of the same calls, and what is no call.
		called("outbound", "web", "orders", minute, audit.Allowed),
		&audit.Event{Time: minute, Action: audit.HandshakeRefused, Outcome: audit.Denied, Call: &audit.CallFacts{End: "inbound", Listener: "orders.inbound"}},
		&audit.Event{Time: minute, Action: audit.Call, Outcome: audit.Denied},
		&audit.Event{Time: minute, Action: audit.ProcessRefused, Outcome: audit.Denied},
	)
	all := []api.EdgeStatus{
		{To: "gateway/front", Calls: 1, Refused: 1, Protection: "mtls", Last: minute},
		{From: "cron", To: "orders", Calls: 1, Refused: 1, Last: minute},
		{From: "old", To: "db", Calls: 1, Refused: 1, Protection: "plain", Last: minute},
		{From: "orders", To: "db", Calls: 3, Protection: "mixed", Last: minute.Add(time.Minute)},
		{From: "web", To: "cart", Calls: 3, Refused: 1, Failed: 2, Last: minute.Add(3 * time.Second)},
		{From: "web", To: "orders", Calls: 4, Refused: 1, Failed: 1, Protection: "mtls", Last: minute.Add(59 * time.Second)},
	}
	// Gateways are protected as their listener is, which the event says.
	all[0].Protection = "mtls"
	recent := append([]api.EdgeStatus(nil), all...)
	recent[5].Calls = 3
	for _, tt := range []struct {
		name  string
		since time.Time
		want  []api.EdgeStatus
	}{
		{"all", time.Time{}, all},
		{"within the minute", minute.Add(30 * time.Second), recent},
		{"the last minute", minute.Add(time.Minute), []api.EdgeStatus{{From: "orders", To: "db", Calls: 1, Protection: "plain", Last: minute.Add(time.Minute)}}},
		{"later", minute.Add(time.Hour), nil},
	} {
		got, err := s.Edges(t.Context(), tt.since)
		if diff := cmp.Diff(tt.want, got); err != nil || diff != "" {
			t.Errorf("%s (%v):\n%s", tt.name, err, diff)
		}
	}
}

// A host whose clock is years ahead makes no edge that is recent for ever.
func testEdgesToCome(t *testing.T, db Database) {
	s := db.open(t, &at{now: noon})
	feed(t, s, "host1-00000001", called("inbound", "web", "orders", noon.AddDate(60, 0, 0), audit.Allowed))
	want := []api.EdgeStatus{{From: "web", To: "orders", Calls: 1, Protection: "mtls", Last: noon}}
	got, err := s.Edges(t.Context(), noon)
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v\n%s", err, diff)
	}
	if got, err := s.Edges(t.Context(), noon.Add(time.Hour)); err != nil || len(got) > 0 {
		t.Errorf("an hour later: %+v, %v", got, err)
	}
}

// Batches and repeated deliveries count each call once.
func testEdgesAddUp(t *testing.T, db Database) {
	s := db.open(t, &at{now: noon})
	all := Entries(t, "host1-00000001", 0, 50)
	for first := 0; first < 50; first += 7 {
		last := min(first+10, 50) // overlaps with the next
		for range 2 {
			if err := s.Collect(t.Context(), "host1-00000001", all[first:last]); err != nil {
				t.Fatal(err)
			}
		}
	}
	feed(t, s, "host2-00000001", called("inbound", "web", "orders", noon, audit.Denied))
	got, err := s.Edges(t.Context(), time.Time{})
	if err != nil || len(got) != 1 || got[0].Calls != 51 || got[0].Refused != 1 {
		t.Errorf("got %+v, %v", got, err)
	}
	// What is not kept does not count.
	if err := s.Collect(t.Context(), "host1-00000001", Entries(t, "host1-00000001", 60, 3)); err == nil {
		t.Error("a hole was accepted")
	}
	if again, err := s.Edges(t.Context(), time.Time{}); err != nil || !cmp.Equal(got, again) {
		t.Errorf("a refused batch was counted: %+v, %v", again, err)
	}
}

func testAuditStatus(t *testing.T, db Database) {
	clk := &at{now: noon}
	s := db.open(t, clk)
	want := api.AuditStatus{State: api.StateOK}
	check := func(what string) {
		t.Helper()
		got, err := s.AuditStatus(t.Context())
		if diff := cmp.Diff(want, got); err != nil || diff != "" {
			t.Errorf("%s (%v):\n%s", what, err, diff)
		}
	}
	check("nothing")
	feed(t, s, "host1-00000001", called("inbound", "web", "orders", noon, audit.Allowed), called("outbound", "web", "orders", noon, audit.Allowed))
	if err := s.Log(t.Context(), Event(audit.ServerStarted)); err != nil {
		t.Fatal(err)
	}
	want.Entries, want.Last = 3, noon
	check("two logs")
	gap := func(n uint64) *audit.Event {
		return &audit.Event{Time: noon, Action: audit.Gap, Outcome: audit.Failure, Gap: &audit.Range{From: 3, To: 3, Count: n}}
	}
	clk.set(noon.Add(time.Second))
	feed(t, s, "host1-00000001", gap(0))
	want.Entries, want.Last = 4, noon.Add(time.Second)
	check("a gap of nothing: a note")
	many := make([]*audit.Event, 1500)
	for i := range many {
		many[i] = gap(2)
	}
	feed(t, s, "host1-00000001", many...)
	want.Entries, want.Gaps, want.State = 1504, 3000, api.StateFailed
	want.Note = "events are known to be lost: parley audit search --action audit.gap"
	check("more gaps than a page of a search")
	feed(t, s, "host1-00000001", gap(math.MaxUint64), gap(math.MaxUint64))
	want.Entries, want.Gaps = 1506, math.MaxInt64
	check("an agent that tells nonsense")
}
