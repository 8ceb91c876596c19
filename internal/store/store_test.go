package store_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/store/xtest"
)

// TestMain runs the tests, or is a child of one.
func TestMain(m *testing.M) { os.Exit(xtest.Main(m)) }

// TestSQLite runs the conformance suite on SQLite.
func TestSQLite(t *testing.T) {
	t.Parallel()
	xtest.Run(t, func(t testing.TB) xtest.Place { return file(filepath.Join(t.TempDir(), "data", "parley.db")) })
}

// file is the place of a database in SQLite.
func file(path string) xtest.Place { return xtest.Place{Path: path} }

func TestModes(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "data")
	path := filepath.Join(dir, "parley.db")
	s := xtest.Open(t, file(path), clock.System{})
	if err := s.Log(t.Context(), xtest.Event(audit.ServerStarted)); err != nil {
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
	s, err := file(path).Open(t.Context(), clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = file(path).Open(t.Context(), clock.System{})
	xtest.WantCode(t, err, fault.StoreBusy)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the database is not where it should be: %v", err)
	}
	xtest.Open(t, file(path), clock.System{})
}

func TestRelativePath(t *testing.T) {
	t.Chdir(t.TempDir())
	xtest.Open(t, file("x y/p%41.db"), clock.System{})
	if _, err := os.Stat("x y/p%41.db-wal"); err != nil {
		t.Error(err)
	}
}

func TestDamagedDatabaseIsRefused(t *testing.T) {
	t.Parallel()
	whole := func(t *testing.T) (string, []byte) {
		path := filepath.Join(t.TempDir(), "parley.db")
		s, err := file(path).Open(t.Context(), clock.System{})
		if err != nil {
			t.Fatal(err)
		}
		for range 60 {
			if err := s.Log(t.Context(), xtest.Event(audit.ServerStarted)); err != nil {
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
			_, err := file(path).Open(t.Context(), clock.System{})
			xtest.WantCode(t, err, fault.StoreCorrupt)
			after, err := os.ReadFile(path)
			if err != nil || string(after) != string(damaged) {
				t.Errorf("the damaged file was changed (%v)", err)
			}
		})
	}
}

func TestFullDatabaseChangesNothing(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "parley.db")
	s := xtest.Open(t, file(path), clock.System{})
	s.Exec(t, `PRAGMA max_page_count = 60`)
	var err error
	n := 0
	for ; err == nil && n < 10_000; n++ {
		err = s.Log(t.Context(), xtest.Event(audit.ServerStarted))
	}
	xtest.WantCode(t, err, fault.StoreFull)
	if got := xtest.Verified(t, s)[s.LogName()]; got != uint64(n-1) {
		t.Errorf("%d entries, want %d", got, n-1)
	}
	s.Exec(t, `PRAGMA max_page_count = 6000`)
	if err := s.Log(t.Context(), xtest.Event(audit.ServerStarted)); err != nil {
		t.Errorf("with room again: %v", err)
	}
	if got := xtest.Verified(t, s)[s.LogName()]; got != uint64(n) {
		t.Errorf("%d entries, want %d", got, n)
	}
}

func TestReadOnlyDatabase(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "parley.db")
	s := xtest.Open(t, file(path), clock.System{})
	s.Exec(t, `PRAGMA query_only = 1`)
	xtest.WantCode(t, s.Log(t.Context(), xtest.Event(audit.ServerStarted)), fault.StoreReadOnly)
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
	_, err := file(filepath.Join(dir, "parley.db")).Open(t.Context(), clock.System{})
	xtest.WantCode(t, err, fault.StoreReadOnly)
}

// A status is asked for often, and the log is long.
func TestStatusDoesNotReadTheLog(t *testing.T) {
	t.Parallel()
	s := xtest.Open(t, file(t.TempDir()+"/parley.db"), clock.System{})
	plan := s.Plan(t, `SELECT body FROM entry WHERE action = 'audit.gap'`)
	if !strings.Contains(plan, "entry_gap") {
		t.Errorf("lost events are looked for by: %s", plan)
	}
	if _, err := s.AuditStatus(t.Context()); err != nil {
		t.Error(err)
	}
}
