package server_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/snapshot"
)

// The server empties what is older than the newest revision keeps it, as soon as it
// is published.
func TestPrunesWhatTheMeshFileDoesNotKeep(t *testing.T) {
	t.Parallel()
	clk := &movable{}
	s := open(t, t.TempDir(), clk)
	ctx, stop := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { s.Prune(ctx) })
	defer done.Wait()
	defer stop()
	pruned := func() []control.StoredEvent {
		t.Helper()
		found, err := s.Store().Search(t.Context(), control.Filter{Action: string(audit.Pruned)})
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	s.Publish(&snapshot.Snapshot{Revision: 1, LeafTTL: time.Hour})
	clk.offset.Store(int64(2 * time.Hour))
	time.Sleep(1500 * time.Millisecond)
	if found := pruned(); len(found) != 0 {
		t.Errorf("pruned without a retention: %s", found[0].Body)
	}
	s.Publish(&snapshot.Snapshot{Revision: 2, LeafTTL: time.Hour, Retention: snapshot.Retention{Security: time.Hour}})
	deadline := time.Now().Add(20 * time.Second)
	for len(pruned()) == 0 {
		if time.Now().After(deadline) {
			t.Fatal("nothing was pruned")
		}
		time.Sleep(50 * time.Millisecond)
	}
	e, err := audit.Decode(pruned()[0].Body)
	if err != nil || e.Log.Count < 2 || e.Object.Name != "security" || e.Actor.System != "retention" { // the signing certificates
		t.Errorf("%s, %v", pruned()[0].Body, err)
	}
	reports, err := s.Store().VerifyLogs(t.Context())
	if err != nil || reports[0].Fault != "" || reports[0].Pruned != e.Log.Count {
		t.Errorf("%+v, %v", reports, err)
	}
}
