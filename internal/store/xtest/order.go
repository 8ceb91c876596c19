package xtest

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/enrol"
	"github.com/parleymesh/parley/internal/identity"
	"github.com/parleymesh/parley/internal/store"
)

// Whoever follows the log by position misses nothing, whatever 50 writers of every
// kind do at once: what has a lower position is never seen later.
func testPositionsInOrder(t *testing.T, db Database) {
	s := db.open(t, clock.System{})
	const rounds = 6
	var revisions, others atomic.Int64
	followed, verified := make(chan int64, 1), make(chan bool)
	ctx, stop := context.WithCancel(t.Context())
	go func() { followed <- follow(ctx, t, s) }()
	go func() { // each time one state of the database, whatever is being written
		defer close(verified)
		for ctx.Err() == nil {
			Verified(t, s)
		}
	}()
	race(t, nil, func(i int) error {
		log := fmt.Sprintf("agent-%d", i)
		for round := range rounds {
			var err error
			switch i % 4 {
			case 0:
				err = s.Collect(t.Context(), log, Entries(t, log, round*7, 7))
				others.Add(7)
			case 1:
				err = s.Log(t.Context(), Event(audit.ServerStarted))
				others.Add(1)
			case 2:
				err = s.CreateKey(t.Context(), key(fmt.Sprintf("%d-%d", i, round)), Event(audit.KeyCreated))
				others.Add(1)
			default:
				err = advance(t.Context(), s)
				revisions.Add(1)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	stop()
	<-verified
	want := revisions.Load() + others.Load()
	if got := <-followed; got != want {
		t.Errorf("the follower saw %d events in order, want %d", got, want)
	}
	head, err := s.Head(t.Context())
	if err != nil || head.Number != revisions.Load() {
		t.Errorf("revision %+v (%v), want number %d: one was lost", head, err, revisions.Load())
	}
	all, err := s.Revisions(t.Context(), 0, maxRevisions)
	if err != nil || int64(len(all)) != revisions.Load() {
		t.Errorf("%d revisions (%v), want %d", len(all), err, revisions.Load())
	}
	Verified(t, s)
}

const maxRevisions = 10_000

// follow reads by position, until ctx ends and nothing more comes, and returns how
// many events came with the position that follows the last.
func follow(ctx context.Context, t testing.TB, s *store.Store) (last int64) {
	for {
		ended := ctx.Err() != nil // before it looks: what comes later is not waited for
		found, err := s.Search(t.Context(), control.Filter{After: last, Limit: 1000})
		if err != nil {
			t.Error(err)
			return last
		}
		for _, f := range found {
			if f.Position != last+1 {
				t.Errorf("position %d came after %d", f.Position, last)
				return last
			}
			last = f.Position
		}
		if ended && len(found) == 0 {
			return last
		}
	}
}

// advance applies a revision after whichever is the newest.
func advance(ctx context.Context, s *store.Store) error {
	for {
		expect := int64(0)
		switch head, err := s.Head(ctx); {
		case err == nil:
			expect = head.Number
		case !errors.Is(err, control.ErrNotFound):
			return err
		}
		if err := s.Apply(ctx, revision("x"), expect, Event(audit.ConfigApplied)); !errors.Is(err, control.ErrConflict) {
			return err
		}
	}
}

// Lists are in the order of their bytes, not in that of somebody's language.
func testOrderOfText(t *testing.T, db Database) {
	s := db.open(t, clock.System{})
	names := []string{"B", "a", "a-b", "a.b", "a1", "aa", "b"} // as bytes are
	var ids []string
	for i := range names {
		name := names[len(names)-1-i]
		id, err := identity.ParseID("spiffe://shop.example/" + name)
		if err != nil {
			t.Fatal(err)
		}
		r := enrol.Record{Serial: name, ID: id, NotBefore: noon, NotAfter: noon.Add(time.Hour), Kind: enrol.KindX509}
		if err := s.Issue(t.Context(), r, Event(audit.SVIDIssued)); err != nil {
			t.Fatal(err)
		}
		if err := s.CreateKey(t.Context(), key(name), Event(audit.KeyCreated)); err != nil {
			t.Fatal(err)
		}
		feed(t, s, "log-"+name, called("inbound", name, "db", noon, audit.Allowed))
	}
	want := func(what string, got []string) {
		t.Helper()
		if diff := cmp.Diff(names, got); diff != "" {
			t.Errorf("%s:\n%s", what, diff)
		}
	}
	certificates, err := s.Certificates(t.Context(), noon)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range certificates {
		ids = append(ids, c.Serial)
	}
	want("certificates", ids)
	keys, err := s.Keys(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ids = nil
	for _, k := range keys {
		ids = append(ids, k.ID)
	}
	want("keys", ids)
	edges, err := s.Edges(t.Context(), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	ids = nil
	for _, e := range edges {
		ids = append(ids, e.From)
	}
	want("edges", ids)
	reports, err := s.VerifyLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ids = nil
	for _, r := range reports {
		if r.Log != s.LogName() {
			ids = append(ids, r.Log[len("log-"):])
		}
	}
	want("logs", ids)
}

// Text of an agent's that no database keeps as it is does not stop its log.
func testStrangeText(t *testing.T, db Database) {
	s := db.open(t, clock.System{})
	const odd = "a\x00b"
	e := called("inbound", odd, odd, noon, audit.Allowed)
	e.Call.RequestID, e.Call.ID, e.Trace = odd, odd, &audit.Trace{TraceID: odd}
	feed(t, s, "agent", e, called("edge", "", odd, noon, audit.Allowed))
	r, k := revision("x"), key("k")
	r.Message, r.Name, r.Actor, k.Name = odd, odd, odd, odd
	if err := s.Apply(t.Context(), r, 0, Event(audit.ConfigApplied)); err != nil {
		t.Error(err)
	}
	if err := s.CreateKey(t.Context(), k, Event(audit.KeyCreated)); err != nil {
		t.Error(err)
	}
	for name, f := range map[string]control.Filter{"from": {From: odd}, "to": {To: odd, From: odd}, "request": {RequestID: odd}, "call": {CallID: odd}, "trace": {TraceID: odd}} {
		if found, err := s.Search(t.Context(), f); err != nil || len(found) != 1 {
			t.Errorf("%s: %d events, %v", name, len(found), err)
		}
	}
	for _, err := range []error{s.RevokeKey(t.Context(), odd, noon, Event(audit.KeyRevoked)), second(s.Event(t.Context(), odd))} {
		if !errors.Is(err, control.ErrNotFound) {
			t.Error(err)
		}
	}
	Verified(t, s)
}

func second[T any](_ T, err error) error { return err }
