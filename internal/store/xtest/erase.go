package xtest

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/store"
)

// OfPerson is the entry of a call of subject at a gateway.
func OfPerson(t testing.TB, log string, index int, subject, issuer string, at time.Time) audit.Entry {
	t.Helper()
	e := &audit.Event{
		ID: fmt.Sprintf("%s-%d", log, index), Time: at, Class: audit.Access, Action: audit.Call, Outcome: audit.Allowed,
		Call:   &audit.CallFacts{End: "edge", Protocol: "http", Listener: "gateway.edge"},
		Caller: &audit.Party{Issuer: issuer}, Callee: &audit.Party{Service: "orders"}, Private: &audit.Private{},
	}
	e.Private.Hold(subject, "192.0.2.7:4711")
	return Entry(t, log, index, e)
}

const idA, idB = "https://a.example", "https://b.example"

func deliver(t testing.TB, s *store.Store, entries ...audit.Entry) {
	t.Helper()
	if err := s.Collect(t.Context(), entries[0].Log, entries); err != nil {
		t.Fatal(err)
	}
}

// of are the events that are found of subject.
func of(t testing.TB, s *store.Store, subject string) (ids []string) {
	t.Helper()
	found, err := s.Search(t.Context(), control.Filter{Subject: subject})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		e, err := audit.Decode(f.Body)
		if err != nil || e.Subject() != subject {
			t.Fatalf("found of %s: %s, %v", subject, f.Body, err)
		}
		ids = append(ids, e.ID)
	}
	return ids
}

func wantOf(t testing.TB, s *store.Store, subject string, want ...string) {
	t.Helper()
	if got := of(t, s, subject); !slices.Equal(got, want) {
		t.Errorf("of %s: %q, want %q", subject, got, want)
	}
}

func testErase(t *testing.T, db Database) {
	clk := &at{now: noon.Add(time.Hour)}
	s := db.open(t, clk)
	first := []audit.Entry{
		OfPerson(t, "vm1", 0, "alice", idA, noon), OfPerson(t, "vm1", 1, "bob", idA, noon), OfPerson(t, "vm1", 2, "alice", idB, noon),
		Entries(t, "vm1", 3, 1)[0], OfPerson(t, "vm1", 4, "alice", idA, noon),
	}
	deliver(t, s, first...)
	deliver(t, s, OfPerson(t, "vm2", 0, "alice", idA, noon))
	wantOf(t, s, "alice", "vm1-0", "vm1-2", "vm1-4", "vm2-0")
	wantOf(t, s, "Alice")
	before, err := s.VerifyLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	p := control.Person{Subject: "alice", Issuer: idA}
	want := []control.Extent{{Log: "vm1", From: 0, To: 4, Count: 2}, {Log: "vm2", From: 0, To: 0, Count: 1}}
	for range 2 { // asking changes nothing
		if got, err := s.Erasable(t.Context(), p); err != nil || !slices.Equal(got, want) {
			t.Fatalf("erasable: %v, %v, want %v", got, err, want)
		}
	}
	erase(t, s, p, clk, want...)
	wantOf(t, s, "alice", "vm1-2")
	wantOf(t, s, "bob", "vm1-1")
	all, err := s.Search(t.Context(), control.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range first {
		gone := i == 0 || i == 4
		if f := all[i]; f.Leaf != n.Leaf || audit.LeafHash(f.Body) != n.Leaf || bytes.Equal(f.Body, n.Body) == gone || bytes.Contains(f.Body, []byte("192.0.2.7")) == (gone || i == 3) {
			t.Errorf("entry %d is now %s", i, f.Body)
		}
	}
	after, err := s.VerifyLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range after {
		if after[i].Fault != "" || after[i].Log != s.LogName() && after[i] != before[i] {
			t.Errorf("before %+v, after %+v", before[i], after[i])
		}
	}
	// What was collected once is what comes again, whole.
	deliver(t, s, first...)
	wantOf(t, s, "alice", "vm1-2")
}

// erase erases p, and holds what came of it and what is recorded.
func erase(t testing.TB, s *store.Store, p control.Person, clk *at, want ...control.Extent) {
	t.Helper()
	e := Event(audit.Erased)
	e.ID, e.Time = audit.NewID(clk.Now()), clk.Now()
	got, err := s.Erase(t.Context(), p, e)
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("erased %v, %v, want %v", got, err, want)
	}
	events, err := s.Search(t.Context(), control.Filter{Action: string(audit.Erased), Newest: true, Limit: max(1, len(want))})
	if err != nil {
		t.Fatal(err)
	}
	var recorded []control.Extent
	for _, f := range events {
		e, err := audit.Decode(f.Body)
		if err != nil {
			t.Fatal(err)
		}
		if e.Object.Kind != "person" || !strings.HasPrefix(e.Object.Name, "k1:") || e.Object.Detail != p.Issuer || bytes.Contains(f.Body, []byte(p.Subject)) {
			t.Errorf("recorded %s", f.Body)
		}
		if e.Log != nil {
			recorded = append(recorded, control.Extent{Log: e.Log.Name, From: e.Log.From, To: e.Log.To, Count: e.Log.Count})
		}
	}
	if !slices.Equal(recorded, want) {
		t.Errorf("recorded %v, want %v", recorded, want)
	}
}

// What an agent delivers late is erased as it arrives, if it is of before.
func testEraseLate(t *testing.T, db Database) {
	clk := &at{now: noon.Add(time.Hour)}
	s := db.open(t, clk)
	erase(t, s, control.Person{Subject: "alice", Issuer: idA}, clk)
	erase(t, s, control.Person{Subject: "carol"}, clk)
	late, later := clk.Now().Add(-time.Microsecond), clk.Now().Add(time.Microsecond)
	entries := []audit.Entry{
		OfPerson(t, "vm1", 0, "alice", idA, late), OfPerson(t, "vm1", 1, "alice", idA, later), OfPerson(t, "vm1", 2, "alice", idB, late),
		OfPerson(t, "vm1", 3, "carol", idB, late), OfPerson(t, "vm1", 4, "bob", idA, late),
	}
	bodies := []string{}
	for _, n := range entries {
		bodies = append(bodies, string(n.Body))
	}
	deliver(t, s, entries...)
	for i, n := range entries {
		if string(n.Body) != bodies[i] {
			t.Errorf("entry %d was changed in the agent's hands", i)
		}
	}
	wantOf(t, s, "alice", "vm1-1", "vm1-2")
	wantOf(t, s, "carol")
	wantOf(t, s, "bob", "vm1-4")
	deliver(t, s, entries...) // once more is the same
	Verified(t, s)
	// Erased again, later: the later time counts.
	clk.set(later.Add(time.Second))
	erase(t, s, control.Person{Subject: "alice", Issuer: idA}, clk, control.Extent{Log: "vm1", From: 1, To: 1, Count: 1})
	deliver(t, s, OfPerson(t, "vm1", 5, "alice", idA, later))
	wantOf(t, s, "alice", "vm1-2")
	Verified(t, s)
}

// However collecting and erasing fall together, nothing of before is left.
func testErasedRaced(t *testing.T, db Database) {
	clk := &at{now: noon.Add(time.Hour)}
	s := db.open(t, clk)
	done := make(chan error, 1)
	go func() {
		for i := range 60 {
			if err := s.Collect(t.Context(), "vm1", []audit.Entry{OfPerson(t, "vm1", i, "alice", idA, noon)}); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	for range 3 {
		e := Event(audit.Erased)
		e.ID, e.Time = audit.NewID(clk.Now()), clk.Now()
		if _, err := s.Erase(t.Context(), control.Person{Subject: "alice"}, e); err != nil {
			t.Error(err)
		}
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantOf(t, s, "alice")
	if sizes := Verified(t, s); sizes["vm1"] != 60 {
		t.Errorf("%v", sizes)
	}
}
