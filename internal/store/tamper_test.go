package store_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/store"
	"github.com/parleymesh/parley/internal/store/xtest"
)

// Every value that is evidence, or by which evidence is found, in a log of 600
// entries: a change of one shows, and where.
func TestVerifyFindsEveryChange(t *testing.T) {
	t.Parallel()
	const log = "agent"
	path := filepath.Join(t.TempDir(), "parley.db")
	s := xtest.Open(t, file(path), clock.System{})
	all := xtest.Entries(t, log, 0, 600)
	if err := s.Collect(t.Context(), log, all); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Witness(t.Context(), log, xtest.Statement(log, all)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ExtendHeads(t.Context()); err != nil {
		t.Fatal(err)
	}
	heads, _, err := s.MarshalHeads()
	if err != nil {
		t.Fatal(err)
	}
	tile := make([]byte, 0, 88*32)
	for _, e := range all[512:] {
		tile = append(tile, e.Leaf[:]...)
	}
	tile[20*32+5] ^= 4
	for name, tt := range map[string]struct {
		statement, want string
		args            []any
	}{
		"body":              {`UPDATE entry SET body = CAST(replace(CAST(body AS TEXT), 'web', 'wec') AS BLOB) WHERE log = 'agent' AND idx = 300`, "entry 300: its leaf hash", nil},
		"leaf":              {`UPDATE entry SET leaf = zeroblob(32) WHERE log = 'agent' AND idx = 301`, "entry 301: its leaf hash", nil},
		"id":                {`UPDATE entry SET event_id = event_id || 'x' WHERE log = 'agent' AND idx = 302`, "entry 302: what it is found by is not what its body says: id", nil},
		"time":              {`UPDATE entry SET time = time + 1 WHERE log = 'agent' AND idx = 303`, "entry 303: what it is found by is not what its body says: time", nil},
		"action":            {`UPDATE entry SET action = 'finding' WHERE log = 'agent' AND idx = 304`, "entry 304: what it is found by is not what its body says: action", nil},
		"outcome":           {`UPDATE entry SET outcome = 'denied' WHERE log = 'agent' AND idx = 305`, "entry 305: what it is found by is not what its body says: outcome", nil},
		"caller":            {`UPDATE entry SET caller = '' WHERE log = 'agent' AND idx = 306`, "entry 306: what it is found by is not what its body says: caller", nil},
		"callee":            {`UPDATE entry SET callee = 'x' WHERE log = 'agent' AND idx = 307`, "entry 307: what it is found by is not what its body says: callee", nil},
		"trace":             {`UPDATE entry SET trace_id = 'x' WHERE log = 'agent' AND idx = 308`, "entry 308: what it is found by is not what its body says: trace", nil},
		"request":           {`UPDATE entry SET request_id = 'x' WHERE log = 'agent' AND idx = 309`, "entry 309: what it is found by is not what its body says: request", nil},
		"order of arrival":  {`UPDATE entry SET position = position + 5000 WHERE log = 'agent' AND idx = 310`, "entry 311: it is said to have arrived before entry 310", nil},
		"index":             {`UPDATE entry SET idx = 900 WHERE log = 'agent' AND idx = 311`, "entry 311: it is missing, entry 312 follows", nil},
		"another's":         {`UPDATE entry SET log = 'other' WHERE log = 'agent' AND idx = 312`, "entry 312: it is missing", nil},
		"first gone":        {`DELETE FROM entry WHERE log = 'agent' AND idx = 0`, "entry 0: it is missing", nil},
		"last gone":         {`DELETE FROM entry WHERE log = 'agent' AND idx = 599`, "entry 599: it is missing", nil},
		"last gone, size":   {`DELETE FROM entry WHERE log = 'agent' AND idx = 599; UPDATE log SET size = 599 WHERE name = 'agent'`, "entry 599: it is missing, the log had 600 entries", nil},
		"swapped":           {`UPDATE entry SET position = 9000 - position, idx = CASE idx WHEN 256 THEN 1257 ELSE 1256 END WHERE log = 'agent' AND idx IN (256, 257); UPDATE entry SET position = 9000 - position, idx = idx - 1000 WHERE log = 'agent' AND idx > 1000; UPDATE entry SET position = CASE idx WHEN 256 THEN 20256 ELSE 20257 END WHERE log = 'agent' AND idx IN (256, 257); UPDATE entry SET position = position + 20000 WHERE log = 'agent' AND idx > 257`, "entry 256: the stored tree has another hash at level 0, tile 1, hash 0", nil},
		"leaf of the tree":  {`UPDATE tile SET hashes = $1 WHERE log = 'agent' AND level = 0 AND n = 2`, "entry 532: the stored tree has another hash at level 0, tile 2, hash 20", []any{tile}},
		"above":             {`UPDATE tile SET hashes = $1 WHERE log = 'agent' AND level = 1`, "entry 0: the stored tree has another hash at level 1, tile 0, hash 0", []any{tile[:64]}},
		"tile moved":        {`UPDATE tile SET n = 7 WHERE log = 'agent' AND level = 0 AND n = 1`, "entry 256: the stored tree lacks tile 1 of level 0", nil},
		"key":               {`UPDATE log_key SET key = replace(key, '+', '-') WHERE log = 'agent'`, "entry 599: the stored key is none", nil},
		"another's key":     {`UPDATE log_key SET key = (SELECT key FROM log_key AS k WHERE k.log <> 'agent') WHERE log = 'agent'`, "entry 599: the checkpoint of", nil},
		"key gone":          {`DELETE FROM log_key WHERE log = 'agent'`, "entry 599: the checkpoint of", nil},
		"the size, smaller": {`UPDATE log SET size = 599 WHERE name = 'agent'`, "entry 599: it is behind the end", nil},
		"the size, larger":  {`UPDATE log SET size = 601 WHERE name = 'agent'`, "entry 600: it is missing", nil},
	} {
		t.Run(name, func(t *testing.T) {
			s := headedCopy(t, s, heads)
			s.Exec(t, tt.statement, tt.args...)
			if found := faults(t, s); !strings.HasPrefix(found[log], tt.want) {
				t.Errorf("found %v, want %q", found, tt.want)
			}
		})
	}
}

// headedCopy is a store on a copy of what s has, with those heads.
func headedCopy(t *testing.T, s *store.Store, heads []byte) *store.Store {
	t.Helper()
	path := filepath.Join(t.TempDir(), "copy.db")
	s.Exec(t, `VACUUM INTO $1`, path)
	c := xtest.Open(t, file(path), clock.System{})
	if err := c.UnmarshalHeads(heads); err != nil {
		t.Fatal(err)
	}
	return c
}

// Whoever has the database writes the end of the server's log anew, as the server
// would: with another key, and with the server's own.
func TestVerifyFindsATailThatWasWrittenAnew(t *testing.T) {
	t.Parallel()
	s := headed(t, 20)
	own := s.LogName()
	pin := newest(t, s, own)
	heads, _, err := s.MarshalHeads()
	if err != nil {
		t.Fatal(err)
	}
	other, err := checkpoint.GenerateKey(xtest.Key(own).Name())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "copy.db")
	for name, tt := range map[string]struct {
		key   *checkpoint.Signer
		heads []byte
		says  string
	}{
		"another key":                   {other, nil, "is not the log's"},
		"the key":                       {xtest.Key(own), heads, "up to here it is not the log that there was"},
		"the key, and the heads as old": {xtest.Key(own), nil, ""},
	} {
		_ = os.Remove(path)
		s.Exec(t, `VACUUM INTO $1`, path)
		attacker, err := store.Open(t.Context(), store.Config{Path: path, Host: "host1", Clock: clock.System{}, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		attacker.Exec(t, `DELETE FROM entry WHERE log = $1 AND idx >= 15`, own)
		attacker.Exec(t, `UPDATE tile SET hashes = substr(hashes, 1, 15*32) WHERE log = $1`, own)
		attacker.Exec(t, `UPDATE log SET size = 15 WHERE name = $1`, own)
		attacker.Exec(t, `DELETE FROM checkpoint WHERE log = $1`, own)
		attacker.Exec(t, `DELETE FROM log_key`)
		if err := attacker.UseKey(t.Context(), tt.key); err != nil {
			t.Fatal(err)
		}
		for i := range 7 {
			if err := attacker.Log(t.Context(), &audit.Event{Action: audit.ServerStarted, Outcome: audit.Success, Message: fmt.Sprint("forged ", i)}); err != nil {
				t.Fatal(err)
			}
		}
		attacker.Exec(t, `UPDATE log_key SET key = $1`, xtest.Key(own).Verifier().String())
		if err := attacker.Close(); err != nil {
			t.Fatal(err)
		}
		changed, err := file(path).Open(t.Context(), clock.System{})
		if err != nil {
			t.Fatal(err)
		}
		if tt.heads != nil {
			if err := changed.UnmarshalHeads(tt.heads); err != nil {
				t.Fatal(err)
			}
		}
		if found := faults(t, changed); (tt.says == "") != (len(found) == 0) || !strings.Contains(found[own], tt.says) {
			t.Errorf("%s: found %v, want %q", name, found, tt.says)
		}
		// A checkpoint that somebody has kept elsewhere tells in any case.
		root, err := changed.RootAt(t.Context(), own, pin.Size)
		if err != nil || root == pin.Root {
			t.Errorf("%s: at %d entries it has the root of the pin (%v)", name, pin.Size, err)
		}
		if err := changed.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func newest(t *testing.T, s *store.Store, log string) checkpoint.Checkpoint {
	t.Helper()
	all, err := s.Checkpoints(t.Context(), log)
	if err != nil || len(all) == 0 {
		t.Fatal(all, err)
	}
	c, err := checkpoint.Unverified(all[len(all)-1].Note)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// An older copy of the database, put back beside heads that know more.
func TestVerifyFindsAnOlderDatabase(t *testing.T) {
	t.Parallel()
	s := headed(t, 10)
	path := filepath.Join(t.TempDir(), "old.db")
	s.Exec(t, `VACUUM INTO $1`, path)
	record(t, s, 10, 5)
	if _, err := s.ExtendHeads(t.Context()); err != nil {
		t.Fatal(err)
	}
	heads, _, err := s.MarshalHeads()
	if err != nil {
		t.Fatal(err)
	}
	old := xtest.Open(t, file(path), clock.System{})
	if err := old.UnmarshalHeads(heads); err != nil {
		t.Fatal(err)
	}
	found := faults(t, old)
	for _, log := range []string{old.LogName(), "agent1-0123abcd"} {
		if !strings.Contains(found[log], "entry 10: it is missing, the log had 15 entries") {
			t.Errorf("%s: found %q", log, found[log])
		}
	}
}

// A log is not signed by another key than it was.
func TestAnotherKeyIsRefused(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "parley.db")
	s := xtest.Open(t, file(path), clock.System{})
	other, err := checkpoint.GenerateKey(xtest.Key(s.LogName()).Name())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.UseKey(t.Context(), other); !errors.Is(err, store.ErrOwnKey) {
		t.Errorf("UseKey: %v", err)
	}
	if err := s.Log(t.Context(), xtest.Event(audit.ServerStarted)); err != nil {
		t.Error(err)
	}
	xtest.Verified(t, s)
}

// A database of the schema before trees of all logs gets them, whatever their sizes.
func TestTreesAreMadeForWhatIsThere(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "parley.db")
	s, err := file(path).Open(t.Context(), clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	own := s.LogName()
	for i, n := range []int{1, 256, 5000} {
		log := fmt.Sprint("agent-", i)
		if err := s.Collect(t.Context(), log, xtest.Entries(t, log, 0, n)); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if err := s.Log(t.Context(), xtest.Event(audit.ServerStarted)); err != nil {
			t.Fatal(err)
		}
	}
	actions := s.Rows(t, `SELECT minute, action, outcome, events FROM action_minute ORDER BY 1, 2, 3`)
	bytes := s.Rows(t, `SELECT name, size, bytes FROM log ORDER BY 1`)
	for _, table := range []string{"tile", "checkpoint", "log_key", "fork", "action_minute", "erasure"} {
		s.Exec(t, `DROP TABLE `+table)
	}
	for _, index := range []string{"entry_pruned", "entry_person", "entry_call"} {
		s.Exec(t, `DROP INDEX `+index)
	}
	s.Exec(t, `ALTER TABLE entry DROP COLUMN person`)
	s.Exec(t, `ALTER TABLE entry DROP COLUMN call_id`)
	s.Exec(t, `ALTER TABLE log DROP COLUMN bytes`)
	s.Exec(t, `CREATE TABLE node (log TEXT, idx BIGINT, hash BYTEA)`)
	s.Exec(t, `DELETE FROM migration WHERE version >= 6`)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s, err = file(path).Open(t.Context(), clock.System{})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if s.LogName() != own {
		t.Error("another log")
	}
	xtest.Verified(t, s)
	if again := s.Rows(t, `SELECT minute, action, outcome, events FROM action_minute ORDER BY 1, 2, 3`); again != actions {
		t.Errorf("actions:\n%s\nwant\n%s", again, actions)
	}
	if again := s.Rows(t, `SELECT name, size, bytes FROM log ORDER BY 1`); again != bytes {
		t.Errorf("logs:\n%s\nwant\n%s", again, bytes)
	}
	// And they go on to grow.
	if err := s.Collect(t.Context(), "agent-2", xtest.Entries(t, "agent-2", 5000, 300)); err != nil {
		t.Fatal(err)
	}
	xtest.Verified(t, s)
}
