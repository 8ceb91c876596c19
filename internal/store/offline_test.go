package store_test

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/offline"
	"github.com/parleymesh/parley/internal/audit/tiles"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/store"
	"github.com/parleymesh/parley/internal/store/xtest"
)

// TestOfflineAfterErasureAndPruning: what is made of a log before and after something of
// it was erased and pruned verifies offline alike, and names nobody.
func TestOfflineAfterErasureAndPruning(t *testing.T) {
	t.Parallel()
	const log, idp = "agent", "https://id.shop.example"
	s := xtest.Open(t, file(filepath.Join(t.TempDir(), "parley.db")), clock.System{})
	start := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	all := xtest.Entries(t, log, 0, 300)
	for i := range all {
		if who := []string{"alice", "bob", ""}[i%3]; who != "" {
			all[i] = xtest.OfPerson(t, log, i, who, idp, start.Add(time.Duration(i)*time.Second))
		}
	}
	if err := s.Collect(t.Context(), log, all); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Witness(t.Context(), log, xtest.Statement(log, all)); err != nil {
		t.Fatal(err)
	}
	const kept = "agent-270" // of alice
	before := proven(t, s, kept)
	exported(t, s, log, 0)

	erased := xtest.Event(audit.Erased)
	erased.ID, erased.Time = audit.NewID(time.Now()), time.Now()
	if _, err := s.Erase(t.Context(), control.Person{Subject: "alice", Issuer: idp}, erased); err != nil {
		t.Fatal(err)
	}
	if after := proven(t, s, kept); !bytes.Equal(after, before) {
		t.Errorf("another proof after the erasure:\n%s\n%s", after, before)
	}
	exported(t, s, log, 0)

	n, err := s.Prune(t.Context(), audit.Access, start.Add(200*time.Second), func() *audit.Event { return xtest.Event(audit.Pruned) })
	if err != nil || n < 100 || n >= len(all) {
		t.Fatalf("%d pruned, %v", n, err)
	}
	if after := proven(t, s, kept); !bytes.Equal(after, before) {
		t.Errorf("another proof after the pruning:\n%s\n%s", after, before)
	}
	exported(t, s, log, uint64(n))
	gone, err := s.Prove(t.Context(), "agent-0")
	if err != nil {
		t.Fatal(err)
	}
	if r, err := offline.Proof(gone, "gone", of(log)); !errors.Is(err, offline.ErrPruned) {
		t.Errorf("the proof of a pruned event: %+v, %v", r, err)
	}
}

// of is what a log is held against.
func of(log string) offline.Given {
	return offline.Given{Keys: []*checkpoint.Verifier{xtest.Key(log).Verifier()}}
}

// proven is the proof of event id, which verifies.
func proven(t *testing.T, s *store.Store, id string) []byte {
	t.Helper()
	proof, err := s.Prove(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	r, err := offline.Proof(proof, id, of("agent"))
	if err != nil || !r.Intact || bytes.Contains(proof, []byte("alice")) {
		t.Errorf("%+v, %v\n%s", r, err, proof)
	}
	return proof
}

// exported makes an export of log, which verifies, and in which so many are pruned.
func exported(t *testing.T, s *store.Store, log string, pruned uint64) {
	t.Helper()
	logs, err := s.Logs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l := logs[0]
	dir := filepath.Join(t.TempDir(), "export")
	w, err := tiles.OpenWriter(dir, l.Origin)
	if err != nil || l.Log != log {
		t.Fatal(l.Log, err)
	}
	defer w.Close()
	entries, err := s.Entries(t.Context(), log, 0, int(l.CheckpointSize))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if err := w.Append(audit.Committed(e.Body), e.Leaf); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish([]byte(l.Checkpoint)); err != nil {
		t.Fatal(err)
	}
	r, err := offline.Export(t.Context(), dir, of(log))
	if err != nil || !r.Intact {
		t.Fatalf("%+v, %v", r, err)
	}
	if r.Pruned != pruned || r.Verified != uint64(len(entries))-pruned {
		t.Errorf("%d pruned, want %d; %d verified", r.Pruned, pruned, r.Verified)
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte("alice")) || bytes.Contains(data, []byte("bob")) {
			t.Errorf("%s names a person", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
