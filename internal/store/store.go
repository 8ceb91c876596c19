// Package store is the control plane's memory: revisions, API keys, what was
// issued, and the audit logs, in one SQL database. It implements the interfaces
// that control, enrol and audit/collect declare. Whatever changes the state
// takes its event, and both are committed in one transaction.
//
// It refuses to keep a secret, to change what is recorded, and to start on a
// database that is damaged, newer than the program or in another server's hands.
package store

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	mathrand "math/rand/v2"
	"os"
	"time"

	"github.com/parleymesh/parley/internal/audit/checkpoint"
	"github.com/parleymesh/parley/internal/audit/collect"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/enrol"
	"github.com/parleymesh/parley/internal/fault"
)

var (
	_ control.Revisions   = (*Store)(nil)
	_ control.Keys        = (*Store)(nil)
	_ control.Bans        = (*Store)(nil)
	_ control.Events      = (*Store)(nil)
	_ control.Evidence    = (*Store)(nil)
	_ control.Eraser      = (*Store)(nil)
	_ enrol.Registry      = (*Store)(nil)
	_ enrol.Joins         = (*Store)(nil)
	_ collect.Sink        = (*Store)(nil)
	_ collect.Counterpart = (*Store)(nil)
	_ collect.Witness     = (*Store)(nil)
)

// Config is what a Store needs: Path, URL or both, and every other field but
// Existing.
type Config struct {
	// Path is the database file of SQLite. It is made with mode 0600 where it is
	// absent, and its folder with 0700.
	Path string
	// URL is a database on a PostgreSQL server (see CheckURL), in place of the file.
	// It may hold a password and is never printed. Where Path is set too, only its
	// lock is made: a data directory has one server, whatever its database.
	URL string
	// HashSecret is what keyed hashes are made by, always the same one: 32 random
	// bytes that are kept beside the database, not in it.
	HashSecret []byte
	// Existing refuses to begin a new database where none is: something that
	// belongs to it is there.
	Existing bool
	// Host is this machine's name: the beginning of the own log's name, and the
	// host of events that name none.
	Host   string
	Clock  clock.Clock
	Logger *slog.Logger
}

// A Store is an open database. It is safe for concurrent use. Times are kept in
// microseconds and returned in UTC.
type Store struct {
	cfg    Config
	engine engine
	lock   *os.File // of Path
	write  *sql.DB
	read   *sql.DB
	hot    map[string]*sql.Stmt // of write, compiled, by their text
	quick  quick                // of read
	log    string               // name of the server's own log
	hashes hashes
	heads  heads
	edges  edges
	queue  logQueue
	signer *checkpoint.Signer // of the own log
}

// Open opens or makes the database and brings it to this program's schema. The
// errors that an operator can act on are StoreCorrupt, StoreVersion, StoreBusy,
// StoreFull and StoreReadOnly, and of a URL also those of CheckURL, StoreUnreachable,
// StoreRefused, StoreUntrusted and StoreUnfit.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	s := &Store{cfg: cfg, hashes: newHashes(cfg.HashSecret), engine: &sqliteFile{path: cfg.Path, existing: cfg.Existing}}
	if cfg.URL != "" {
		at, err := parseURL(cfg.URL)
		if err != nil {
			return nil, err
		}
		s.engine = &postgres{target: at, clock: cfg.Clock, logger: cfg.Logger, holder: rand.Text(), who: describe(cfg.Host, cfg.Clock.Now())}
	}
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(s.explain("open", err), s.Close())
	}
	return s, nil
}

func (s *Store) open(ctx context.Context) (err error) {
	if s.cfg.Path != "" {
		if s.lock, err = lockFile(s.cfg.Path); err != nil {
			return err
		}
	}
	if s.write, s.read, err = s.engine.open(ctx); err != nil {
		return err
	}
	if err := s.migrate(ctx); err != nil {
		return err
	}
	s.quick.DB = s.read
	if err := s.prepare(ctx); err != nil {
		return err
	}
	return s.name(ctx)
}

// Hold keeps the database this process's until ctx ends, which every server has
// to have running: a hold that is not kept up ends after seconds. Its error is
// StoreBusy: another server has taken the database, since this one was cut off
// from it or stood still, and every change is refused from then on.
func (s *Store) Hold(ctx context.Context) error { return s.engine.hold(ctx) }

// Unsafe is the reason that the URL gives for a connection without protection, ""
// where it is protected.
func (s *Store) Unsafe() string {
	if p, ok := s.engine.(*postgres); ok {
		return p.unsafe
	}
	return ""
}

// Close closes the database and lets go of it.
func (s *Store) Close() error {
	var errs []error
	for _, db := range []*sql.DB{s.read, s.write} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	errs = append(errs, s.engine.close())
	if s.lock != nil {
		errs = append(errs, unlockFile(s.lock))
	}
	return errors.Join(errs...)
}

// LogName is the name of the server's own log: minted once and kept.
func (s *Store) LogName() string { return s.log }

// maxTries bounds how often a transaction is begun.
const maxTries = 10

// update runs f in a transaction that is committed if f returns nil; where the
// database asks for it, f runs again in another one. An error says what was being
// done.
func (s *Store) update(ctx context.Context, doing string, f func(tx *sql.Tx) error) error {
	for try := 1; ; try++ {
		err := s.transact(ctx, f)
		if err == nil || try == maxTries || !s.engine.again(err) {
			return s.explain(doing, err)
		}
		if err := s.cfg.Clock.Sleep(ctx, mathrand.N(time.Duration(try)*10*time.Millisecond)); err != nil {
			return s.explain(doing, err)
		}
	}
}

func (s *Store) transact(ctx context.Context, f func(tx *sql.Tx) error) error {
	// Each statement sees what was committed before it, and a row that is changed
	// stays this transaction's: what is written here counts on both.
	tx, err := s.write.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelReadCommitted})
	if err != nil {
		return err
	}
	defer tx.Rollback() // after Commit it does nothing
	if err := s.engine.enter(ctx, tx); err != nil {
		return err
	}
	if err := f(tx); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return unsure{err}
	}
	return nil
}

// LastTime is when the newest record of any kind was written, by the clock of
// the server that wrote it; zero if there is none. Times inside events do not
// count: those of collected ones are other machines'.
func (s *Store) LastTime(ctx context.Context) (time.Time, error) {
	var last int64
	err := s.read.QueryRowContext(ctx, `SELECT COALESCE(MAX(updated), 0) FROM log`).Scan(&last)
	return fromMicro(last), s.explain("read the time of the newest record", err)
}

// maxBehind is how far the clock may stand before the newest record.
const maxBehind = 5 * time.Minute

// CheckClock is fault.ClockWrong if now is more than five minutes before the
// newest record: certificates and events of such a server would not be believed.
func (s *Store) CheckClock(ctx context.Context, now time.Time) error {
	last, err := s.LastTime(ctx)
	if err != nil {
		return err
	}
	if behind := last.Sub(now); behind > maxBehind {
		return fault.New(fault.ClockWrong, "set this machine's clock (timedatectl status), then start again",
			"the clock says %s, and the newest record in %s is of %s", now.UTC().Format(time.RFC3339), s.engine, last.Format(time.RFC3339))
	}
	return nil
}

// explain makes a driver's error one that an operator can act on, and says what
// was being done. nil stays nil.
func (s *Store) explain(doing string, err error) error {
	if err == nil {
		return nil
	}
	var known *fault.Fault
	if !errors.As(err, &known) {
		err = s.engine.explain(err)
	}
	return fmt.Errorf("%s: %w", doing, err)
}

// micro is t as the database keeps it; the zero time is 0.
func micro(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMicro()
}

func fromMicro(us int64) time.Time {
	if us == 0 {
		return time.Time{}
	}
	return time.UnixMicro(us).UTC()
}
