package server_test

import (
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
	"github.com/parleymesh/parley/internal/node/server"
)

func start(t *testing.T, dir string) (*server.Server, error) {
	t.Helper()
	return server.Open(t.Context(), server.Config{Host: "test", Dir: dir, TrustDomain: domain(t), Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler)})
}

// The server's log is signed by a key of its own, which is kept.
func TestTheLogIsSigned(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var keys []string
	for range 2 {
		s, err := start(t, dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Started(t.Context()); err != nil {
			t.Fatal(err)
		}
		key, ok, err := s.Store().Signed(t.Context())
		if err != nil || !ok {
			t.Fatal(err)
		}
		keys = append(keys, key)
		v, err := checkpoint.ParseVerifier(key)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := s.Store().Checkpoints(t.Context(), s.Store().LogName())
		if err != nil || len(signed) == 0 {
			t.Fatal(signed, err)
		}
		n, err := checkpoint.Open(signed[len(signed)-1].Note, v)
		if err != nil || n.Origin != "server.example/"+s.Store().LogName() || n.Size == 0 {
			t.Errorf("the newest checkpoint: %+v, %v", n, err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if keys[0] != keys[1] {
		t.Errorf("keys %v", keys)
	}
	if info, err := os.Stat(filepath.Join(dir, "audit.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("audit.key: %v, %v", info, err)
	}
}

func TestAStartWithoutTheLogsKeyIsRefused(t *testing.T) {
	t.Parallel()
	made := func() string {
		dir := t.TempDir()
		s, err := start(t, dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	other := made()
	for name, tt := range map[string]struct {
		spoil func(dir, key string) error
		code  fault.Code
		says  string
	}{
		"gone":    {func(_, key string) error { return os.Remove(key) }, fault.KeyUnreadable, "is gone, and the database has what it signed"},
		"damaged": {func(_, key string) error { return os.WriteFile(key, []byte("x"), 0o600) }, fault.KeyCorrupt, "does not open with this master key"},
		"of another directory": {func(_, key string) error {
			if err := os.Rename(filepath.Join(other, "audit.key"), key); err != nil {
				return err
			}
			return os.Rename(filepath.Join(other, "master.key"), filepath.Join(filepath.Dir(key), "other.key"))
		}, fault.KeyCorrupt, "does not open with this master key"},
	} {
		dir := made()
		key := filepath.Join(dir, "audit.key")
		if err := tt.spoil(dir, key); err != nil {
			t.Fatal(err)
		}
		s, err := start(t, dir)
		if err == nil {
			_ = s.Close()
			t.Errorf("%s: it starts", name)
			continue
		}
		all := fault.All(err)
		if len(all) != 1 || all[0].Code != tt.code || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), key) || all[0].Hint == "" {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A database of another directory, under the master key of this one.
	dir, from := made(), made()
	for _, name := range []string{"parley.db", "parley.db-wal", "parley.db-shm"} {
		_ = os.Remove(filepath.Join(dir, name))
		if err := os.Rename(filepath.Join(from, name), filepath.Join(dir, name)); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	_, err := start(t, dir)
	if all := fault.All(err); len(all) != 1 || all[0].Code != fault.KeyUnreadable || !strings.Contains(err.Error(), "is of the audit log server.example/") {
		t.Errorf("another database: %v", err)
	}
}
