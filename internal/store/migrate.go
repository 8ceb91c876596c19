package store

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/fault"
)

//go:embed migrations/*.sql
var migrations embed.FS

// A migration is one step of the schema: forward only, and never changed once
// it was released.
type migration struct {
	version  int64
	name     string
	text     string
	checksum string
}

// plantVersion is the step that comes with trees of what is there.
const plantVersion = 6

// steps are the migrations of fsys by version, which count from 1 without holes.
func steps(fsys fs.FS) ([]migration, error) {
	names, err := fs.Glob(fsys, "migrations/*.sql")
	if err != nil {
		return nil, err
	}
	var all []migration
	for i, name := range names { // Glob sorts
		text, err := fs.ReadFile(fsys, name)
		if err != nil {
			return nil, err
		}
		base := strings.TrimSuffix(strings.TrimPrefix(name, "migrations/"), ".sql")
		number, title, _ := strings.Cut(base, "_")
		version, err := strconv.ParseInt(number, 10, 64)
		if err != nil || version != int64(i+1) {
			return nil, fmt.Errorf("migration %s is not number %d", name, i+1)
		}
		sum := sha256.Sum256(text)
		all = append(all, migration{version, title, string(text), hex.EncodeToString(sum[:])})
	}
	return all, nil
}

// migrate brings the database to this program's schema, all steps or none.
func (s *Store) migrate(ctx context.Context) error {
	all, err := steps(migrations)
	if err != nil {
		return err
	}
	return s.update(ctx, "migrate", func(tx *sql.Tx) error { return s.apply(ctx, tx, all) })
}

func (s *Store) apply(ctx context.Context, tx *sql.Tx, all []migration) error {
	if _, err := tx.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS migration (
		version BIGINT PRIMARY KEY, name TEXT NOT NULL, checksum TEXT NOT NULL, applied BIGINT NOT NULL)`); err != nil {
		return err
	}
	done, err := s.applied(ctx, tx, all)
	if err != nil {
		return err
	}
	if done == 0 && s.cfg.Existing {
		return gone(s.engine.String())
	}
	if done < len(all) {
		if err := s.engine.patient(ctx, tx); err != nil {
			return err
		}
	}
	for _, m := range all[done:] {
		if _, err := tx.ExecContext(ctx, m.text); err != nil {
			return fmt.Errorf("%d_%s: %w", m.version, m.name, err)
		}
		if m.version == plantVersion {
			if err := s.plantAll(ctx, tx); err != nil {
				return fmt.Errorf("%d_%s: %w", m.version, m.name, err)
			}
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO migration (version, name, checksum, applied) VALUES ($1, $2, $3, $4)`,
			m.version, m.name, m.checksum, micro(s.cfg.Clock.Now())); err != nil {
			return err
		}
		s.cfg.Logger.Info("database migrated", "version", m.version, "name", m.name)
	}
	return nil
}

// applied is how many of all the database has, and checks that they are those.
func (s *Store) applied(ctx context.Context, tx *sql.Tx, all []migration) (int, error) {
	rows, err := tx.QueryContext(ctx, `SELECT version, checksum FROM migration ORDER BY version`)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	done := 0
	for ; rows.Next(); done++ {
		var version int64
		var checksum string
		if err := rows.Scan(&version, &checksum); err != nil {
			return 0, err
		}
		if done >= len(all) {
			return 0, fault.New(fault.StoreVersion, "use the parley that last ran here, or a newer one (parley version)",
				"the database %s has schema %d, and this parley knows %d", s.engine, version, len(all))
		}
		if version != all[done].version || checksum != all[done].checksum {
			return 0, fault.New(fault.StoreVersion, "use the parley that last ran here (parley version)",
				"migration %d of the database %s is not this parley's", version, s.engine)
		}
	}
	return done, rows.Err()
}

// name mints the own log's name if there is none yet.
func (s *Store) name(ctx context.Context) error {
	return s.update(ctx, "name the log", func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `INSERT INTO meta (id, rev, log) VALUES (1, 0, $1) ON CONFLICT (id) DO NOTHING`,
			audit.NewLogName(s.cfg.Host+"-server")); err != nil {
			return err
		}
		if _, err := tx.ExecContext(ctx, `INSERT INTO arrival (id, last) VALUES (1, 0) ON CONFLICT (id) DO NOTHING`); err != nil {
			return err
		}
		if err := tx.QueryRowContext(ctx, `SELECT log FROM meta WHERE id = 1`).Scan(&s.log); err != nil {
			return err
		}
		_, err := tx.ExecContext(ctx, beginLog, s.log)
		return err
	})
}
