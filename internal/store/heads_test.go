package store_test

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/store"
	"github.com/parleymesh/parley/internal/store/xtest"
)

// headed is a store with n entries in its own log and in an agent's, all of them in
// its heads.
func headed(t *testing.T, n int) *store.Store {
	t.Helper()
	s := xtest.Open(t, file(filepath.Join(t.TempDir(), "parley.db")), clock.System{})
	record(t, s, 0, n)
	if fresh, err := s.ExtendHeads(t.Context()); err != nil || fresh != uint64(2*n) {
		t.Fatalf("%d entries are new, %v", fresh, err)
	}
	return s
}

func record(t *testing.T, s *store.Store, from, n int) {
	t.Helper()
	var entries []audit.Entry
	for i := range n {
		now := time.Date(2026, 11, 24, 12, 0, from+i, 0, time.UTC)
		e := &audit.Event{ID: audit.NewID(now), Time: now, Class: audit.Security, Action: audit.ServerStarted, Outcome: audit.Success, Host: "agent1", Reporter: "agent", Message: fmt.Sprint(from + i)}
		if err := s.Log(t.Context(), &audit.Event{Action: audit.ServerStarted, Outcome: audit.Success}); err != nil {
			t.Fatal(err)
		}
		body, err := audit.Encode(nil, e)
		if err != nil {
			t.Fatal(err)
		}
		entries = append(entries, audit.Entry{Log: "agent1-0123abcd", Index: uint64(from + i), Leaf: audit.LeafHash(body), Body: body})
	}
	if err := s.Collect(t.Context(), "agent1-0123abcd", entries); err != nil {
		t.Fatal(err)
	}
}

// faults are what VerifyLogs says, by log.
func faults(t *testing.T, s *store.Store) map[string]string {
	t.Helper()
	reports, err := s.VerifyLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]string{}
	for _, r := range reports {
		if r.Fault != "" {
			found[r.Log] = r.Fault
		}
	}
	return found
}

// What whoever writes to the database can do without a trace in it.
func TestVerifyFindsAnEndThatWasCutOff(t *testing.T) {
	t.Parallel()
	const agent = "agent1-0123abcd"
	for name, tc := range map[string]struct {
		log, says string
		do        func(s *store.Store, own string)
	}{
		"the end of the own log": {"own", "entry 7: it is missing, the log had 10 entries", func(s *store.Store, own string) {
			s.Exec(t, `DELETE FROM entry WHERE log = $1 AND idx >= 7`, own)
			s.Exec(t, `UPDATE tile SET hashes = substr(hashes, 1, 7*32) WHERE log = $1`, own)
			s.Exec(t, `UPDATE log SET size = 7 WHERE name = $1`, own)
		}},
		"the end of an agent's": {agent, "entry 7: it is missing, the log had 10 entries", func(s *store.Store, _ string) {
			s.Exec(t, `DELETE FROM entry WHERE log = $1 AND idx >= 7`, agent)
			s.Exec(t, `UPDATE tile SET hashes = substr(hashes, 1, 7*32) WHERE log = $1`, agent)
			s.Exec(t, `UPDATE log SET size = 7 WHERE name = $1`, agent)
		}},
		"the end, and others in its place": {agent, "up to here it is not the log that there was", func(s *store.Store, _ string) {
			s.Exec(t, `DELETE FROM entry WHERE log = $1 AND idx >= 7`, agent)
			s.Exec(t, `UPDATE tile SET hashes = substr(hashes, 1, 7*32) WHERE log = $1`, agent)
			s.Exec(t, `UPDATE log SET size = 7 WHERE name = $1`, agent)
			record(t, s, 7, 5)
		}},
		"a whole log": {agent, "entry 0: it is missing, the log had 10 entries", func(s *store.Store, _ string) {
			s.Exec(t, `DELETE FROM entry WHERE log = $1`, agent)
			s.Exec(t, `DELETE FROM tile WHERE log = $1`, agent)
			s.Exec(t, `DELETE FROM log WHERE name = $1`, agent)
		}},
	} {
		s := headed(t, 10)
		if found := faults(t, s); len(found) > 0 {
			t.Fatalf("before: %v", found)
		}
		log := tc.log
		if log == "own" {
			log = s.LogName()
		}
		tc.do(s, s.LogName())
		for _, when := range []string{"at once", "after it was looked at"} {
			if found := faults(t, s); len(found) != 1 || !strings.Contains(found[log], tc.says) {
				t.Errorf("%s, %s: got %v", name, when, found)
			}
			if _, err := s.ExtendHeads(t.Context()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// Heads that are behind, as after a crash, are no fault, and go on where they were.
func TestHeadsGoOn(t *testing.T) {
	t.Parallel()
	s := headed(t, 10)
	old, left, err := s.MarshalHeads()
	if err != nil || left > 0 {
		t.Fatal(left, err)
	}
	record(t, s, 10, 1300)
	if found := faults(t, s); len(found) > 0 {
		t.Errorf("behind: %v", found)
	}
	if err := s.UnmarshalHeads(old); err != nil {
		t.Fatal(err)
	}
	if fresh, err := s.ExtendHeads(t.Context()); err != nil || fresh != 2600 {
		t.Errorf("%d entries are new, %v", fresh, err)
	}
	if fresh, err := s.ExtendHeads(t.Context()); err != nil || fresh != 0 {
		t.Errorf("%d entries are new, %v", fresh, err)
	}
	if found := faults(t, s); len(found) > 0 {
		t.Errorf("up to date: %v", found)
	}
	for _, bad := range []string{"", "{}", `[{"log":"a","size":1,"edge":""}]`, `[{"log":"a","size":1,"edge":"AAAA"}]`} {
		if err := s.UnmarshalHeads([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
