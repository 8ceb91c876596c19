package xtest

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/collect"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/identity"
)

func testOwnLog(t *testing.T, db Database) {
	s := db.open(t, &at{now: noon})
	if !strings.HasPrefix(s.LogName(), "host1-server-") {
		t.Errorf("the log is called %q", s.LogName())
	}
	given := &audit.Event{ID: "given", Time: noon.Add(-time.Second), Class: audit.Access, Action: audit.Finding, Outcome: audit.Failure, Host: "h", Reporter: "r"}
	for _, e := range []*audit.Event{given, {Action: audit.ServerStarted, Outcome: audit.Success}} {
		before := *e
		if err := s.Log(t.Context(), e); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, *e, cmp.AllowUnexported(identity.ID{})); diff != "" {
			t.Errorf("Log changed the event:\n%s", diff)
		}
	}
	found, err := s.Search(t.Context(), control.Filter{})
	if err != nil || len(found) != 2 {
		t.Fatalf("%d events, %v", len(found), err)
	}
	var tree audit.Tree
	for i, f := range found {
		if f.Log != s.LogName() || f.Index != uint64(i) || f.Leaf != audit.LeafHash(f.Body) {
			t.Errorf("entry %+v", f)
		}
		tree.Append(f.Leaf)
	}
	first, err := audit.Decode(found[0].Body)
	given.Schema = audit.Schema
	if diff := cmp.Diff(given, first, cmp.AllowUnexported(identity.ID{})); err != nil || diff != "" {
		t.Errorf("what is given is kept (%v):\n%s", err, diff)
	}
	second, err := audit.Decode(found[1].Body)
	if err != nil {
		t.Fatal(err)
	}
	if len(second.ID) != 26 || !second.Time.Equal(noon) || second.Class != audit.Security || second.Host != "host1" || second.Reporter != "server" {
		t.Errorf("what is left open is filled in: %+v", second)
	}
	reports, err := s.VerifyLogs(t.Context())
	want := []control.LogReport{{Log: s.LogName(), Size: 2, Root: tree.Root(), First: given.Time, Last: noon}}
	if diff := cmp.Diff(want, reports); err != nil || diff != "" {
		t.Errorf("VerifyLogs (%v):\n%s", err, diff)
	}
}

// An event that cannot be encoded fails the change that it is for.
func testFailedChangeLeavesNothing(t *testing.T, db Database) {
	s := db.open(t, clock.System{})
	bad := Event(audit.ConfigApplied)
	bad.Time = time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC)
	if err := s.Apply(t.Context(), revision("x"), 0, bad); !errors.Is(err, audit.ErrTime) {
		t.Errorf("Apply: %v", err)
	}
	if err := s.CreateKey(t.Context(), key("k"), bad); !errors.Is(err, audit.ErrTime) {
		t.Errorf("CreateKey: %v", err)
	}
	if _, err := s.Head(t.Context()); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("Head: %v", err)
	}
	if keys, err := s.Keys(t.Context()); err != nil || len(keys) != 0 {
		t.Errorf("Keys: %v, %v", keys, err)
	}
	if err := s.Apply(t.Context(), revision("x"), 0, Event(audit.ConfigApplied)); err != nil {
		t.Error(err)
	}
	if n := Verified(t, s)[s.LogName()]; n != 1 {
		t.Errorf("%d events, want 1", n)
	}
}

func testCollect(t *testing.T, db Database) {
	s := db.open(t, clock.System{})
	all, other := Entries(t, "agent-1", 0, 50), Entries(t, "agent-2", 0, 3)
	cursor := func(log string, want uint64) {
		t.Helper()
		if n, err := s.Cursor(t.Context(), log); err != nil || n != want {
			t.Fatalf("Cursor(%s) = %d, %v; want %d", log, n, err, want)
		}
	}
	collect := func(log string, batch []audit.Entry) {
		t.Helper()
		if err := s.Collect(t.Context(), log, batch); err != nil {
			t.Fatal(err)
		}
	}
	cursor("agent-1", 0)
	collect("agent-1", nil)
	cursor("agent-1", 0)
	collect("agent-1", all[:10])
	cursor("agent-1", 10)
	collect("agent-2", other)
	collect("agent-1", all[:10]) // again
	cursor("agent-1", 10)
	collect("agent-1", all[5:30]) // overlapping
	cursor("agent-1", 30)
	collect("agent-1", all[2:4]) // long past
	collect("agent-1", all[30:])
	cursor("agent-1", 50)
	cursor("agent-2", 3)
	found, err := s.Search(t.Context(), control.Filter{Limit: 1000})
	if err != nil || len(found) != 53 {
		t.Fatalf("%d events, %v", len(found), err)
	}
	var got []audit.Entry
	for i, f := range found {
		if f.Position != int64(i+1) {
			t.Errorf("event %d has position %d", i, f.Position)
		}
		got = append(got, f.Entry)
	}
	want := append(append(append([]audit.Entry{}, all[:10]...), other...), all[10:]...)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got\n%s", diff)
	}
	sizes := Verified(t, s)
	if diff := cmp.Diff(map[string]uint64{"agent-1": 50, "agent-2": 3, s.LogName(): 0}, sizes); diff != "" {
		t.Errorf("sizes:\n%s", diff)
	}
}

func testCollectRefuses(t *testing.T, db Database) {
	s := db.open(t, clock.System{})
	if err := s.Collect(t.Context(), "agent", Entries(t, "agent", 0, 3)); err != nil {
		t.Fatal(err)
	}
	batch := func(change func([]audit.Entry) []audit.Entry) []audit.Entry { return change(Entries(t, "agent", 3, 4)) }
	garbage := func(body string) []audit.Entry {
		return batch(func(b []audit.Entry) []audit.Entry {
			b[3].Body, b[3].Leaf = []byte(body), audit.LeafHash([]byte(body))
			return b
		})
	}
	tests := map[string]struct {
		log   string
		batch []audit.Entry
		want  error
	}{
		"hole before":       {"agent", Entries(t, "agent", 4, 2), collect.ErrHole},
		"new log from 1":    {"fresh", Entries(t, "fresh", 1, 2), collect.ErrHole},
		"hole within":       {"agent", batch(func(b []audit.Entry) []audit.Entry { return append(b[:1], b[2:]...) }), collect.ErrHole},
		"twice within":      {"agent", batch(func(b []audit.Entry) []audit.Entry { return append(b[:1], b...) }), collect.ErrHole},
		"huge index":        {"agent", batch(func(b []audit.Entry) []audit.Entry { b[0].Index = 1<<64 - 1; return b[:1] }), collect.ErrHole},
		"wrong leaf":        {"agent", batch(func(b []audit.Entry) []audit.Entry { b[3].Leaf[7] ^= 1; return b }), collect.ErrLeaf},
		"changed body":      {"agent", batch(func(b []audit.Entry) []audit.Entry { b[3].Body[9] ^= 1; return b }), collect.ErrLeaf},
		"other log's":       {"agent", batch(func(b []audit.Entry) []audit.Entry { b[3].Log = "x"; return b }), collect.ErrName},
		"the server's own":  {s.LogName(), Entries(t, s.LogName(), 0, 1), collect.ErrName},
		"no name":           {"", Entries(t, "", 0, 1), collect.ErrName},
		"malformed name":    {"a b", Entries(t, "a b", 0, 1), collect.ErrName},
		"no event":          {"agent", garbage("hello"), audit.ErrCanonical},
		"later schema":      {"agent", garbage(`{"schema":2}`), audit.ErrSchema},
		"too long":          {"agent", garbage(strings.Repeat(" ", audit.MaxEvent+1)), audit.ErrTooLong},
		"another past":      {"agent", []audit.Entry{Entry(t, "agent", 1, Event(audit.Finding))}, collect.ErrFork},
		"past and new":      {"agent", append([]audit.Entry{Entry(t, "agent", 2, Event(audit.Finding))}, Entries(t, "agent", 3, 1)...), collect.ErrFork},
		"canonical but not": {"agent", garbage(` {"schema":1}`), audit.ErrCanonical},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if err := s.Collect(t.Context(), tt.log, tt.batch); !errors.Is(err, tt.want) {
				t.Errorf("Collect: %v, want %v", err, tt.want)
			}
			if n, err := s.Cursor(t.Context(), "agent"); err != nil || n != 3 {
				t.Errorf("cursor %d, %v", n, err)
			}
		})
	}
	if sizes := Verified(t, s); len(sizes) != 2 {
		t.Errorf("a refused batch left a log: %v", sizes)
	}
}

// Several deliverers of one log, as after a reconnection: all succeed, each
// entry is there once.
func testRacedCollect(t *testing.T, db Database) {
	s := db.open(t, clock.System{})
	all := Entries(t, "agent", 0, 40)
	if won := race(t, nil, func(i int) error { return s.Collect(t.Context(), "agent", all[:20+i%20]) }); won != 50 {
		t.Errorf("%d of 50 succeeded", won)
	}
	if n := Verified(t, s)["agent"]; n != 39 {
		t.Errorf("%d entries, want 39", n)
	}
}

func testSearch(t *testing.T, db Database) {
	s := db.open(t, clock.System{})
	batch := searched(t)
	if err := s.Collect(t.Context(), "agent", batch); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		f    control.Filter
		want string
	}{
		"all":              {control.Filter{}, "e0 e1 e2 e3 e4 e5"},
		"from":             {control.Filter{From: "web"}, "e0 e1 e5"},
		"from by identity": {control.Filter{From: "orders"}, "e2"},
		"to":               {control.Filter{To: "orders"}, "e0 e5"},
		"from and to":      {control.Filter{From: "web", To: "db"}, "e1"},
		"action":           {control.Filter{Action: "process.refused"}, "e4"},
		"outcome":          {control.Filter{Outcome: "denied"}, "e1"},
		"trace":            {control.Filter{TraceID: "t1"}, "e2"},
		"request":          {control.Filter{RequestID: "r1"}, "e3"},
		"call":             {control.Filter{CallID: "c1"}, "e3"},
		"since":            {control.Filter{Since: noon.Add(4 * time.Second)}, "e4 e5"},
		"until":            {control.Filter{Until: noon.Add(time.Second)}, "e0"},
		"since and until":  {control.Filter{Since: noon.Add(time.Second), Until: noon.Add(3 * time.Second)}, "e1 e2"},
		"limit":            {control.Filter{Limit: 2}, "e0 e1"},
		"after":            {control.Filter{After: 2, Limit: 3}, "e2 e3 e4"},
		"after the end":    {control.Filter{After: 6}, ""},
		"newest":           {control.Filter{Newest: true, Limit: 2}, "e4 e5"},
		"newest of some":   {control.Filter{Newest: true, From: "web", Limit: 2}, "e1 e5"},
		"newest after":     {control.Filter{Newest: true, After: 5, Limit: 3}, "e5"},
		"nothing":          {control.Filter{From: "nobody"}, ""},
		"no injection":     {control.Filter{From: "web' OR '1'='1"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			found, err := s.Search(t.Context(), tt.f)
			if err != nil {
				t.Fatal(err)
			}
			var ids []string
			for _, f := range found {
				v, err := audit.Decode(f.Body)
				if err != nil {
					t.Fatal(err)
				}
				ids = append(ids, v.ID)
			}
			if got := strings.Join(ids, " "); got != tt.want {
				t.Errorf("Search = %q, want %q", got, tt.want)
			}
		})
	}
	found, err := s.Event(t.Context(), "e3")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&control.StoredEvent{Entry: batch[3], Position: 4}, found); diff != "" {
		t.Errorf("Event:\n%s", diff)
	}
	for _, id := range []string{"", "e9"} {
		if _, err := s.Event(t.Context(), id); !errors.Is(err, control.ErrNotFound) {
			t.Errorf("Event(%q): %v", id, err)
		}
	}
}

// searched are the events e0 to e5.
func searched(t testing.TB) []audit.Entry {
	t.Helper()
	orders, err := identity.ParseID("spiffe://shop.example/orders")
	if err != nil {
		t.Fatal(err)
	}
	e := func(i int, change func(*audit.Event)) audit.Entry {
		v := &audit.Event{ID: fmt.Sprint("e", i), Time: noon.Add(time.Duration(i) * time.Second), Class: audit.Access, Action: audit.Call, Outcome: audit.Allowed}
		change(v)
		return Entry(t, "agent", i, v)
	}
	call := func(from, to string) func(*audit.Event) {
		return func(v *audit.Event) {
			v.Caller, v.Callee = &audit.Party{Service: from}, &audit.Party{Service: to}
		}
	}
	return []audit.Entry{
		e(0, call("web", "orders")),
		e(1, func(v *audit.Event) { call("web", "db")(v); v.Outcome = audit.Denied }),
		e(2, func(v *audit.Event) { v.Caller = &audit.Party{ID: orders}; v.Trace = &audit.Trace{TraceID: "t1"} }),
		e(3, func(v *audit.Event) { v.Call = &audit.CallFacts{RequestID: "r1", ID: "c1"} }),
		e(4, func(v *audit.Event) { v.Action = audit.ProcessRefused }),
		e(5, call("web", "orders")),
	}
}

// Whoever changes the database by hand is found out, and where.
func testVerifyFinds(t *testing.T, db Database) {
	for name, tt := range map[string]struct {
		statement string // $1 is the own log
		own       bool   // the fault is in the own log, else in "agent"
		want      string
	}{
		"body":         {`UPDATE entry SET body = (SELECT body FROM entry WHERE log = 'agent' AND idx = 3) WHERE log = 'agent' AND idx = 2`, false, "entry 2: its leaf hash"},
		"leaf":         {`UPDATE entry SET leaf = (SELECT leaf FROM entry WHERE log = 'agent' AND idx = 3) WHERE log = 'agent' AND idx = 1050`, false, "entry 1050: its leaf hash"},
		"column":       {`UPDATE entry SET caller = 'other' WHERE log = 'agent' AND idx = 4`, false, "entry 4: what it is found by"},
		"time":         {`UPDATE entry SET time = time + 1 WHERE log = 'agent' AND idx = 4`, false, "entry 4: what it is found by"},
		"gone":         {`DELETE FROM entry WHERE log = 'agent' AND idx = 1020`, false, "entry 1020: it is missing, entry 1021 follows"},
		"end gone":     {`DELETE FROM entry WHERE log = 'agent' AND idx = 9`, false, "entry 9: it is missing, the log has 10 entries"},
		"surplus":      {`UPDATE log SET size = 8 WHERE name = 'agent'`, false, "entry 8: it is behind the end"},
		"log gone":     {`DELETE FROM log WHERE name = 'agent'`, false, "entry 0: it is behind the end"},
		"own body":     {`UPDATE entry SET body = (SELECT body FROM entry WHERE log = 'agent' AND idx = 3) WHERE log = $1 AND idx = 2`, true, "entry 2: its leaf hash"},
		"tile":         {`UPDATE tile SET hashes = (SELECT hashes FROM tile WHERE log = $1 AND level = 0) WHERE log = 'agent' AND level = 0 AND n = 2`, false, "entry 512: the stored tree has another hash at level 0, tile 2, hash 0"},
		"upper tile":   {`UPDATE tile SET hashes = (SELECT leaf FROM entry WHERE log = 'agent' AND idx = 1050) WHERE log = 'agent' AND level = 1`, false, "entry 0: the stored tree has another hash at level 1, tile 0, hash 0"},
		"tile cut":     {`UPDATE tile SET hashes = (SELECT leaf FROM entry WHERE log = $1 AND idx = 0) WHERE log = $1`, true, "entry 1: the stored tree has another hash at level 0, tile 0, hash 1"},
		"tile gone":    {`DELETE FROM tile WHERE log = 'agent' AND level = 0 AND n = 1`, false, "entry 256: the stored tree lacks tile 1 of level 0"},
		"tile surplus": {`INSERT INTO tile (log, level, n, hashes) SELECT log, 3, 0, hashes FROM tile WHERE log = $1`, true, "entry 5: the stored tree goes on"},
		"tile of none": {`INSERT INTO tile (log, level, n, hashes) VALUES ('agent', 0, 5, (SELECT leaf FROM entry WHERE log = 'agent' AND idx = 1)) `, false, "entry 10: the stored tree goes on"},
		"own end gone": {`DELETE FROM entry WHERE log = $1 AND idx = 4`, true, "entry 4: it is missing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := db(t)
			s := Open(t, p, clock.System{})
			n := 10
			if strings.Contains(tt.statement, "idx = 10") || strings.Contains(tt.statement, " n = ") { // behind the first page, or tile
				n = 1100
			}
			if err := s.Collect(t.Context(), "agent", Entries(t, "agent", 0, n)); err != nil {
				t.Fatal(err)
			}
			for range 5 {
				if err := s.Log(t.Context(), Event(audit.ServerStarted)); err != nil {
					t.Fatal(err)
				}
			}
			Verified(t, s)
			if strings.Contains(tt.statement, "$1") {
				p.Exec(t, tt.statement, s.LogName())
			} else {
				p.Exec(t, tt.statement)
			}
			reports, err := s.VerifyLogs(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range reports {
				if bad := (r.Log == s.LogName()) == tt.own; bad != strings.HasPrefix(r.Fault, tt.want) || !bad && r.Fault != "" {
					t.Errorf("log %s: fault %q, want %q in the one that was changed", r.Log, r.Fault, tt.want)
				}
			}
		})
	}
}
