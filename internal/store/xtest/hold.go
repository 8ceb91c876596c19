package xtest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/store"
)

// patience is more than any database keeps the next server waiting.
const patience = 30 * time.Second

// held is an open store that is held until stop is called, or the test ends.
func held(t testing.TB, p Place) (s *store.Store, stop func() error) {
	t.Helper()
	s, err := p.Open(t.Context(), clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Hold(ctx) }()
	stop = func() error {
		cancel()
		err := <-ended
		ended <- nil
		return errors.Join(err, s.Close())
	}
	t.Cleanup(func() { _ = stop() })
	return s, stop
}

// One server holds the database: a second one is refused while it does, however
// long that is, and let in when it has ended.
func testSecondServer(t *testing.T, db Database) {
	p := db(t)
	s, stop := held(t, p)
	for range 2 {
		began := time.Now()
		_, err := p.Open(t.Context(), clock.System{})
		WantCode(t, err, fault.StoreBusy)
		if took := time.Since(began); took > patience/2 {
			t.Errorf("it took %v to see that another server lives", took)
		}
	}
	if err := s.Log(t.Context(), Event(audit.ServerStarted)); err != nil {
		t.Errorf("the first server no longer can: %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	Open(t, p, clock.System{})
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("it took %v to take over what was let go of", took)
	}
}

func testNewerSchema(t *testing.T, db Database) {
	for name, statement := range map[string]string{
		"newer":   `INSERT INTO migration (version, name, checksum, applied) VALUES (999, 'later', 'x', 0)`,
		"foreign": `UPDATE migration SET checksum = 'other' WHERE version = 1`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := db(t)
			s, err := p.Open(t.Context(), clock.System{})
			if err != nil {
				t.Fatal(err)
			}
			p.Exec(t, statement)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			for range 2 { // it lets go of it
				_, err = p.Open(t.Context(), clock.System{})
				WantCode(t, err, fault.StoreVersion)
			}
		})
	}
}

// A database that has to be there is not begun.
func testGone(t *testing.T, db Database) {
	p := db(t)
	for range 2 { // a refusal leaves nothing behind that would pass
		_, err := p.open(t.Context(), clock.System{}, true)
		WantCode(t, err, fault.StoreCorrupt)
	}
	s, err := p.Open(t.Context(), clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := p.open(t.Context(), clock.System{}, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Close(); err != nil {
		t.Fatal(err)
	}
}

func testCancelled(t *testing.T, db Database) {
	s := db.open(t, clock.System{})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Log(ctx, Event(audit.ServerStarted)); !errors.Is(err, context.Canceled) || len(fault.All(err)) > 0 {
		t.Errorf("error %v, want context.Canceled", err)
	}
	if err := s.Log(t.Context(), Event(audit.ServerStarted)); err != nil {
		t.Errorf("after a cancelled change: %v", err)
	}
	Verified(t, s)
}
