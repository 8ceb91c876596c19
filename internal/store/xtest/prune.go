package xtest

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/store"
)

// prune prunes, and is what was recorded of it.
func prune(t testing.TB, s *store.Store, class audit.Class, before time.Time, want int) (extents []control.Extent) {
	t.Helper()
	had, err := s.Search(t.Context(), control.Filter{Action: string(audit.Pruned)})
	if err != nil {
		t.Fatal(err)
	}
	n, err := s.Prune(t.Context(), class, before, func() *audit.Event { return Event(audit.Pruned) })
	if err != nil || n != want {
		t.Fatalf("pruned %d, %v, want %d", n, err, want)
	}
	events, err := s.Search(t.Context(), control.Filter{Action: string(audit.Pruned)})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range events[len(had):] {
		e, err := audit.Decode(f.Body)
		if err != nil || e.Log == nil || e.Log.Size == 0 || len(e.Log.Root) != 64 {
			t.Fatalf("%s, %v", f.Body, err)
		}
		extents = append(extents, control.Extent{Log: e.Log.Name, From: e.Log.From, To: e.Log.To, Count: e.Log.Count})
	}
	return extents
}

func testPrune(t *testing.T, db Database) {
	clk := &at{now: noon.Add(time.Hour)}
	place := db(t)
	s := Open(t, place, clk)
	entries := Entries(t, "vm1", 0, 6) // a millisecond apart
	entries[1] = OfPerson(t, "vm1", 1, "alice", idA, noon.Add(time.Millisecond))
	e := Event(audit.Finding)
	e.ID, e.Time, e.Class, e.Reporter = "a-finding", noon.Add(2*time.Millisecond), audit.Security, "agent"
	entries[2] = Entry(t, "vm1", 2, e)
	deliver(t, s, entries...)
	deliver(t, s, Entries(t, "vm2", 0, 2)...)
	if err := s.Log(t.Context(), Event(audit.ServerStarted)); err != nil {
		t.Fatal(err)
	}
	before, err := s.VerifyLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}

	want := []control.Extent{{Log: "vm1", From: 0, To: 3, Count: 3}, {Log: "vm2", From: 0, To: 1, Count: 2}}
	if got := prune(t, s, audit.Access, noon.Add(4*time.Millisecond), 5); !slices.Equal(got, want) {
		t.Errorf("recorded %v, want %v", got, want)
	}
	if got := prune(t, s, audit.Access, noon.Add(4*time.Millisecond), 0); got != nil {
		t.Errorf("twice: %v", got)
	}
	all, err := s.Search(t.Context(), control.Filter{})
	if err != nil {
		t.Fatal(err)
	}
	for i, n := range entries {
		gone := slices.Contains([]int{0, 1, 3}, i)
		if f := all[i]; f.Leaf != n.Leaf || f.Index != n.Index || (len(f.Body) == 0) != gone {
			t.Errorf("entry %d is %s with leaf %x", i, f.Body, f.Leaf)
		}
	}
	if found, err := s.Event(t.Context(), "vm1-3"); err != nil || len(found.Body) != 0 || found.Index != 3 {
		t.Errorf("by its id: %+v, %v", found, err)
	}
	wantOf(t, s, "alice")
	for name, f := range map[string]control.Filter{
		"from": {From: "web"}, "request": {RequestID: "r3"}, "until": {Until: noon.Add(4 * time.Millisecond)}, "action": {Action: "call"},
	} {
		found, err := s.Search(t.Context(), f)
		if err != nil || slices.ContainsFunc(found, func(e control.StoredEvent) bool { return len(e.Body) == 0 }) {
			t.Errorf("%s finds what is not there: %v", name, err)
		}
	}
	after, err := s.VerifyLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i, pruned := range map[int]uint64{slices.IndexFunc(after, ofLog("vm1")): 3, slices.IndexFunc(after, ofLog("vm2")): 2, slices.IndexFunc(after, ofLog(s.LogName())): 0} {
		if r := after[i]; r.Fault != "" || r.Pruned != pruned || r.Log != s.LogName() && (r.Root != before[i].Root || r.Size != before[i].Size) {
			t.Errorf("before %+v, after %+v", before[i], r)
		}
	}
	// What comes again is what was there, and the log goes on.
	deliver(t, s, entries...)
	deliver(t, s, Entries(t, "vm1", 6, 1)...)
	prune(t, s, audit.Security, noon.Add(3*time.Millisecond), 1)
	// What says that something is missing stays, however old it is.
	clk.set(noon.Add(24 * time.Hour))
	prune(t, s, audit.Security, clk.Now(), 1) // the start of the server
	Verified(t, s)
	emptied(t, place, s)
}

// emptied holds that what somebody else emptied is none of what was pruned.
func emptied(t *testing.T, place Place, s *store.Store) {
	place.Exec(t, `UPDATE entry SET body = $1, time = 0, action = '', outcome = '', caller = '', callee = '', request_id = '' WHERE log = 'vm1' AND idx = 5`, []byte{})
	reports, err := s.VerifyLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if r := reports[slices.IndexFunc(reports, ofLog("vm1"))]; r.Fault != "entry 5: it is empty, and it is none of the 4 that were pruned" {
		t.Errorf("%+v", r)
	}
	place.Exec(t, `UPDATE entry SET caller = 'web' WHERE log = 'vm1' AND idx = 0`)
	if reports, err = s.VerifyLogs(t.Context()); err != nil {
		t.Fatal(err)
	}
	if r := reports[slices.IndexFunc(reports, ofLog("vm1"))]; r.Fault != "entry 0: it is empty and still found by something" {
		t.Errorf("%+v", r)
	}
}

func ofLog(name string) func(control.LogReport) bool {
	return func(r control.LogReport) bool { return r.Log == name }
}

// Many are emptied in some transactions, each of which says which they were.
func testPruneMany(t *testing.T, db Database) {
	clk := &at{now: noon.Add(time.Hour)}
	s := db.open(t, clk)
	const n = 4100
	for first := 0; first < n; first += 410 {
		deliver(t, s, Entries(t, "vm1", first, 410)...)
	}
	extents := prune(t, s, audit.Access, clk.Now(), n)
	var sum uint64
	for _, x := range extents {
		sum += x.Count
	}
	if len(extents) < 3 || sum != n {
		t.Errorf("%v", extents)
	}
	if sizes := Verified(t, s); sizes["vm1"] != n {
		t.Error(fmt.Sprint(sizes))
	}
}
