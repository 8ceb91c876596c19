package store_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/store"
)

// opener opens a store on the same empty database each time.
type opener func() (*store.Store, error)

// TestSQLite runs the conformance suite on SQLite.
func TestSQLite(t *testing.T) {
	t.Parallel()
	conformance(t, func(t testing.TB, clk clock.Clock) opener {
		path := filepath.Join(t.TempDir(), "data", "parley.db")
		return func() (*store.Store, error) { return store.Open(t.Context(), config(path, clk)) }
	})
}

// conformance is what every database has to pass.
func conformance(t *testing.T, fresh func(testing.TB, clock.Clock) opener) {
	for name, test := range map[string]func(*testing.T, func(testing.TB, clock.Clock) opener){
		"revisions":               testRevisions,
		"one of raced revisions":  testRacedApply,
		"keys":                    testKeys,
		"one of raced revocation": testRacedRevoke,
		"certificates":            testCertificates,
		"own log":                 testOwnLog,
		"failed change":           testFailedChangeLeavesNothing,
		"collect":                 testCollect,
		"collect refuses":         testCollectRefuses,
		"collect raced":           testRacedCollect,
		"search":                  testSearch,
		"verify finds":            testVerifyFinds,
		"clock":                   testClock,
		"reopen":                  testReopen,
		"edges":                   testEdges,
		"edges add up":            testEdgesAddUp,
		"audit status":            testAuditStatus,
		"joins":                   testJoins,
		"one of raced joins":      testRacedJoin,
		"bans":                    testBans,
	} {
		t.Run(name, func(t *testing.T) { t.Parallel(); test(t, fresh) })
	}
}

func config(path string, clk clock.Clock) store.Config {
	return store.Config{Path: path, Host: "host1", Clock: clk, Logger: slog.New(slog.DiscardHandler)}
}

// open is a store for one test.
func open(t testing.TB, o opener) *store.Store {
	t.Helper()
	s, err := o()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// at is a clock that stands still until it is set.
type at struct {
	mu  sync.Mutex
	now time.Time
}

func (a *at) Now() time.Time { a.mu.Lock(); defer a.mu.Unlock(); return a.now }

func (a *at) Sleep(ctx context.Context, d time.Duration) error {
	return clock.System{}.Sleep(ctx, d)
}

func (a *at) set(t time.Time) { a.mu.Lock(); defer a.mu.Unlock(); a.now = t }

var noon = time.Date(2026, 11, 23, 12, 0, 0, 123456000, time.UTC)

func event(action audit.Action) *audit.Event {
	return &audit.Event{Action: action, Outcome: audit.Success, Actor: &audit.Actor{User: "root"}}
}

// logged are the bodies of the own log.
func mustVerify(t testing.TB, s *store.Store) map[string]uint64 {
	t.Helper()
	reports, err := s.VerifyLogs(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sizes := map[string]uint64{}
	for _, r := range reports {
		if r.Fault != "" {
			t.Errorf("log %s: %s", r.Log, r.Fault)
		}
		sizes[r.Log] = r.Size
	}
	return sizes
}

func wantCode(t testing.TB, err error, want fault.Code) {
	t.Helper()
	all := fault.All(err)
	if len(all) != 1 || all[0].Code != want {
		t.Fatalf("error %v (%v), want %s", err, all, want)
	}
	if all[0].Hint == "" {
		t.Errorf("%s comes without a hint", want)
	}
}

func TestModes(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	path := filepath.Join(dir, "parley.db")
	s := open(t, func() (*store.Store, error) { return store.Open(t.Context(), config(path, clock.System{})) })
	if err := s.Log(t.Context(), event(audit.ServerStarted)); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) < 4 { // database, WAL, its index, lock
		t.Errorf("%v", entries)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v (%v), want 0600", e.Name(), info.Mode(), err)
		}
	}
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("folder has mode %v (%v), want 0700", info.Mode(), err)
	}
}

func TestSecondServerIsRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "a folder & more?#", "parley.db")
	o := func() (*store.Store, error) { return store.Open(t.Context(), config(path, clock.System{})) }
	s, err := o()
	if err != nil {
		t.Fatal(err)
	}
	_, err = o()
	wantCode(t, err, fault.StoreBusy)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the database is not where it should be: %v", err)
	}
	open(t, o)
}

func TestRelativePath(t *testing.T) {
	t.Chdir(t.TempDir())
	open(t, func() (*store.Store, error) { return store.Open(t.Context(), config("x y/p%41.db", clock.System{})) })
	if _, err := os.Stat("x y/p%41.db-wal"); err != nil {
		t.Error(err)
	}
}

func TestDamagedDatabaseIsRefused(t *testing.T) {
	t.Parallel()
	whole := func(t *testing.T) (string, []byte) {
		path := filepath.Join(t.TempDir(), "parley.db")
		s, err := store.Open(t.Context(), config(path, clock.System{}))
		if err != nil {
			t.Fatal(err)
		}
		for range 60 {
			if err := s.Log(t.Context(), event(audit.ServerStarted)); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return path, data
	}
	for name, damage := range map[string]func([]byte) []byte{
		"other file":   func([]byte) []byte { return []byte(strings.Repeat("this is no database\n", 500)) },
		"overwritten":  func(d []byte) []byte { copy(d[8192:], strings.Repeat("x", 40960)); return d },
		"cut short":    func(d []byte) []byte { return d[:len(d)/2] },
		"header":       func(d []byte) []byte { copy(d, "SQLite format 4"); return d },
		"page pointer": func(d []byte) []byte { copy(d[4096:], strings.Repeat("\xff", 64)); return d },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path, data := whole(t)
			damaged := damage(data)
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			_, err := store.Open(t.Context(), config(path, clock.System{}))
			wantCode(t, err, fault.StoreCorrupt)
			after, err := os.ReadFile(path)
			if err != nil || string(after) != string(damaged) {
				t.Errorf("the damaged file was changed (%v)", err)
			}
		})
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	t.Parallel()
	for name, statement := range map[string]string{
		"newer":   `INSERT INTO migration (version, name, checksum, applied) VALUES (999, 'later', 'x', 0)`,
		"foreign": `UPDATE migration SET checksum = 'other' WHERE version = 1`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(t.TempDir(), "parley.db")
			s, err := store.Open(t.Context(), config(path, clock.System{}))
			if err != nil {
				t.Fatal(err)
			}
			s.Exec(t, statement)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			_, err = store.Open(t.Context(), config(path, clock.System{}))
			wantCode(t, err, fault.StoreVersion)
		})
	}
}

func TestFullDatabaseChangesNothing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "parley.db")
	s := open(t, func() (*store.Store, error) { return store.Open(t.Context(), config(path, clock.System{})) })
	s.Exec(t, `PRAGMA max_page_count = 60`)
	var err error
	n := 0
	for ; err == nil && n < 10_000; n++ {
		err = s.Log(t.Context(), event(audit.ServerStarted))
	}
	wantCode(t, err, fault.StoreFull)
	if got := mustVerify(t, s)[s.LogName()]; got != uint64(n-1) {
		t.Errorf("%d entries, want %d", got, n-1)
	}
	s.Exec(t, `PRAGMA max_page_count = 6000`)
	if err := s.Log(t.Context(), event(audit.ServerStarted)); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if got := mustVerify(t, s)[s.LogName()]; got != uint64(n) {
		t.Errorf("%d entries, want %d", got, n)
	}
}

func TestReadOnlyDatabase(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "parley.db")
	s := open(t, func() (*store.Store, error) { return store.Open(t.Context(), config(path, clock.System{})) })
	s.Exec(t, `PRAGMA query_only = 1`)
	wantCode(t, s.Log(t.Context(), event(audit.ServerStarted)), fault.StoreReadOnly)
}

func TestUnwritableFolder(t *testing.T) {
	t.Parallel()
	if os.Geteuid() == 0 {
		t.Skip("root writes everywhere")
	}
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o500); err != nil {
		t.Fatal(err)
	}
	_, err := store.Open(t.Context(), config(filepath.Join(dir, "parley.db"), clock.System{}))
	wantCode(t, err, fault.StoreReadOnly)
}

func TestCancelledChange(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "parley.db")
	s := open(t, func() (*store.Store, error) { return store.Open(t.Context(), config(path, clock.System{})) })
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Log(ctx, event(audit.ServerStarted)); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
	if err := s.Log(t.Context(), event(audit.ServerStarted)); err != nil {
		t.Errorf("after a cancelled change: %v", err)
	}
	mustVerify(t, s)
}

func BenchmarkLog(b *testing.B) {
	path := filepath.Join(b.TempDir(), "parley.db")
	s := open(b, func() (*store.Store, error) { return store.Open(b.Context(), config(path, clock.System{})) })
	b.ReportAllocs()
	for b.Loop() {
		if err := s.Log(b.Context(), event(audit.SVIDIssued)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCollect256(b *testing.B) {
	path := filepath.Join(b.TempDir(), "parley.db")
	s := open(b, func() (*store.Store, error) { return store.Open(b.Context(), config(path, clock.System{})) })
	next := 0
	for b.Loop() {
		b.StopTimer()
		batch := entries(b, "bench", next, 256)
		b.StartTimer()
		if err := s.Collect(b.Context(), "bench", batch); err != nil {
			b.Fatal(err)
		}
		next += 256
	}
}

// entries are n access events of log from index first on.
func entries(t testing.TB, log string, first, n int) []audit.Entry {
	t.Helper()
	all := make([]audit.Entry, n)
	for i := range all {
		all[i] = entry(t, log, first+i, &audit.Event{
			ID: fmt.Sprintf("%s-%d", log, first+i), Time: noon.Add(time.Duration(first+i) * time.Millisecond),
			Class: audit.Access, Action: audit.Call, Outcome: audit.Allowed,
			Call:   &audit.CallFacts{End: "inbound", Protocol: "http", Listener: "orders.inbound", RequestID: fmt.Sprint("r", first+i)},
			Caller: &audit.Party{Service: "web"}, Callee: &audit.Party{Service: "orders"},
		})
	}
	return all
}

func entry(t testing.TB, log string, index int, e *audit.Event) audit.Entry {
	t.Helper()
	body, err := audit.Encode(nil, e)
	if err != nil {
		t.Fatal(err)
	}
	return audit.Entry{Log: log, Index: uint64(index), Leaf: audit.LeafHash(body), Body: body}
}
