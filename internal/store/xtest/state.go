package xtest

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/enrol"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/mesh"
	"github.com/parleymesh/parley/internal/snapshot"
)

func revision(text string) *control.Revision {
	return &control.Revision{
		Applied: noon, Actor: "root", Message: "why", Name: "parley.yaml", Text: []byte(text), Digest: fmt.Sprintf("%x", text),
		Ports: mesh.Ports{{From: "web", To: "orders"}: 15001, {From: "orders", To: "db"}: 15002}, RollbackOf: 7,
	}
}

func testRevisions(t *testing.T, db Database) {
	s := db.open(t, clock.System{})
	if _, err := s.Head(t.Context()); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("Head of nothing: %v", err)
	}
	var want []*control.Revision
	for i := range 5 {
		r := revision(fmt.Sprint("text\r\n\x00\xff", i))
		if i == 3 {
			r.Text, r.Ports = []byte{}, mesh.Ports{}
		}
		if err := s.Apply(t.Context(), r, int64(i), Event(audit.ConfigApplied)); err != nil {
			t.Fatal(err)
		}
		if r.Number != int64(i+1) {
			t.Errorf("number %d, want %d", r.Number, i+1)
		}
		want = append([]*control.Revision{r}, want...)
	}
	for _, stale := range []int64{0, 4, 6, -1} {
		r := revision("stale")
		if err := s.Apply(t.Context(), r, stale, Event(audit.ConfigApplied)); !errors.Is(err, control.ErrConflict) || r.Number != 0 {
			t.Errorf("Apply on %d: %v, number %d", stale, err, r.Number)
		}
	}
	head, err := s.Head(t.Context())
	if diff := cmp.Diff(want[0], head); err != nil || diff != "" {
		t.Errorf("Head (%v):\n%s", err, diff)
	}
	second, err := s.Revision(t.Context(), 2)
	if diff := cmp.Diff(want[3], second); err != nil || diff != "" {
		t.Errorf("Revision 2 (%v):\n%s", err, diff)
	}
	if _, err := s.Revision(t.Context(), 6); !errors.Is(err, control.ErrNotFound) {
		t.Errorf("Revision 6: %v", err)
	}
	for _, page := range []struct {
		before int64
		limit  int
		want   []*control.Revision
	}{{0, 0, want}, {0, 2, want[:2]}, {4, 2, want[2:4]}, {1, 2, nil}, {3, 9, want[3:]}} {
		got, err := s.Revisions(t.Context(), page.before, page.limit)
		if diff := cmp.Diff(page.want, got, cmpopts.EquateEmpty()); err != nil || diff != "" {
			t.Errorf("Revisions(%d, %d) (%v):\n%s", page.before, page.limit, err, diff)
		}
	}
	if n := Verified(t, s)[s.LogName()]; n != 5 {
		t.Errorf("%d events, want 5: one for each change that was made", n)
	}
}

// race runs f 50 times at once and counts its successes; every failure has to
// be want.
func race(t *testing.T, want error, f func(i int) error) int {
	t.Helper()
	var won atomic.Int64
	var wg sync.WaitGroup
	start := make(chan struct{})
	for i := range 50 {
		wg.Go(func() {
			<-start
			switch err := f(i); {
			case err == nil:
				won.Add(1)
			case !errors.Is(err, want):
				t.Errorf("%v, want %v", err, want)
			}
		})
	}
	close(start)
	wg.Wait()
	return int(won.Load())
}

func testRacedApply(t *testing.T, db Database) {
	s := db.open(t, clock.System{})
	for round := range int64(3) {
		if won := race(t, control.ErrConflict, func(i int) error {
			return s.Apply(t.Context(), revision(fmt.Sprint(i)), round, Event(audit.ConfigApplied))
		}); won != 1 {
			t.Errorf("%d of 50 were accepted, want 1", won)
		}
	}
	if n := Verified(t, s)[s.LogName()]; n != 3 {
		t.Errorf("%d events, want 3", n)
	}
}

func key(id string) control.Key {
	return control.Key{
		APIKey:  snapshot.APIKey{ID: id, Name: "name of " + id, Digest: [32]byte{1, 2, 31: 255}, Scopes: []string{"a", "b"}, NotAfter: noon.Add(time.Hour)},
		Created: noon,
	}
}

func testKeys(t *testing.T, db Database) {
	s := db.open(t, clock.System{})
	a, b, c := key("a"), key("b"), key("c")
	b.Created, b.NotAfter, b.Scopes = noon.Add(-time.Hour), time.Time{}, nil
	for _, k := range []control.Key{c, a, b} {
		if err := s.CreateKey(t.Context(), k, Event(audit.KeyCreated)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.CreateKey(t.Context(), a, Event(audit.KeyCreated)); !errors.Is(err, control.ErrConflict) {
		t.Errorf("the same key again: %v", err)
	}
	a.Revoked = noon.Add(time.Minute)
	if err := s.RevokeKey(t.Context(), "a", a.Revoked, Event(audit.KeyRevoked)); err != nil {
		t.Error(err)
	}
	for _, id := range []string{"a", "z", ""} {
		if err := s.RevokeKey(t.Context(), id, noon, Event(audit.KeyRevoked)); !errors.Is(err, control.ErrNotFound) {
			t.Errorf("RevokeKey(%q): %v", id, err)
		}
	}
	got, err := s.Keys(t.Context())
	if diff := cmp.Diff([]control.Key{b, a, c}, got); err != nil || diff != "" {
		t.Errorf("Keys (%v):\n%s", err, diff)
	}
	if n := Verified(t, s)[s.LogName()]; n != 4 {
		t.Errorf("%d events, want 4", n)
	}
}

func testRacedRevoke(t *testing.T, db Database) {
	s := db.open(t, clock.System{})
	if err := s.CreateKey(t.Context(), key("k"), Event(audit.KeyCreated)); err != nil {
		t.Fatal(err)
	}
	if won := race(t, control.ErrNotFound, func(int) error {
		return s.RevokeKey(t.Context(), "k", noon, Event(audit.KeyRevoked))
	}); won != 1 {
		t.Errorf("%d of 50 revoked it, want 1", won)
	}
	if n := Verified(t, s)[s.LogName()]; n != 2 {
		t.Errorf("%d events, want 2", n)
	}
}

func testCertificates(t *testing.T, db Database) {
	s := db.open(t, clock.System{})
	id, err := identity.ParseID("spiffe://shop.example/web")
	if err != nil {
		t.Fatal(err)
	}
	record := func(serial string, ends time.Duration) enrol.Record {
		return enrol.Record{Serial: serial, ID: id, NotBefore: noon.Add(-time.Minute), NotAfter: noon.Add(ends), Fingerprint: "f-" + serial, Host: "host1", Kind: enrol.KindX509}
	}
	live, ended, other := record("01", time.Hour), record("02", -time.Second), record("03", 2*time.Hour)
	other.Kind, other.NotBefore = enrol.KindJWT, noon
	probe := record("04", 5*time.Minute)
	probe.Kind, probe.NotBefore = enrol.KindProbe, noon.Add(time.Second) // may not have begun
	for _, r := range []enrol.Record{probe, other, live, ended} {
		if err := s.Issue(t.Context(), r, Event(audit.SVIDIssued)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Issue(t.Context(), live, Event(audit.SVIDIssued)); !errors.Is(err, control.ErrConflict) {
		t.Errorf("the same serial again: %v", err)
	}
	if err := s.Refused(t.Context(), Event(audit.IssueRefused)); err != nil {
		t.Error(err)
	}
	got, err := s.Certificates(t.Context(), noon)
	if diff := cmp.Diff([]enrol.Record{live, other, probe}, got, cmp.AllowUnexported(identity.ID{})); err != nil || diff != "" {
		t.Errorf("Certificates (%v):\n%s", err, diff)
	}
	if n := Verified(t, s)[s.LogName()]; n != 5 {
		t.Errorf("%d events, want 5", n)
	}
}

func testClock(t *testing.T, db Database) {
	clk := &at{now: noon}
	s := db.open(t, clk)
	if last, err := s.LastTime(t.Context()); err != nil || !last.IsZero() {
		t.Errorf("LastTime of nothing: %v, %v", last, err)
	}
	if err := s.CheckClock(t.Context(), time.Unix(0, 0)); err != nil {
		t.Errorf("nothing to compare with: %v", err)
	}
	if err := s.Log(t.Context(), Event(audit.ServerStarted)); err != nil {
		t.Fatal(err)
	}
	clk.set(noon.Add(time.Hour))
	// An agent whose clock runs years ahead says nothing about the server's.
	wrong := Event(audit.Call)
	wrong.Time = noon.AddDate(9, 0, 0)
	if err := s.Collect(t.Context(), "agent", []audit.Entry{Entry(t, "agent", 0, wrong)}); err != nil {
		t.Fatal(err)
	}
	last, err := s.LastTime(t.Context())
	if err != nil || !last.Equal(noon.Add(time.Hour)) {
		t.Errorf("LastTime = %v, %v", last, err)
	}
	for _, ok := range []time.Duration{-5 * time.Minute, 0, time.Hour, 10 * 365 * 24 * time.Hour} {
		if err := s.CheckClock(t.Context(), last.Add(ok)); err != nil {
			t.Errorf("%v from the newest record: %v", ok, err)
		}
	}
	WantCode(t, s.CheckClock(t.Context(), last.Add(-5*time.Minute-time.Microsecond)), "PAR-2004")
}

func testReopen(t *testing.T, db Database) {
	p := db(t)
	s, err := p.Open(t.Context(), clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	name := s.LogName()
	for i := range int64(3) {
		if err := s.Apply(t.Context(), revision("x"), i, Event(audit.ConfigApplied)); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = Open(t, p, clock.System{})
	if s.LogName() != name {
		t.Errorf("the log is called %s, and was %s", s.LogName(), name)
	}
	if err := s.Apply(t.Context(), revision("y"), 3, Event(audit.ConfigApplied)); err != nil {
		t.Error(err)
	}
	if n := Verified(t, s)[name]; n != 4 {
		t.Errorf("%d events, want 4", n)
	}
}
