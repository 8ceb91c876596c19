package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/parleymesh/parley/internal/clock"
	"github.com/parleymesh/parley/internal/fault"
)

// What a server may use of a PostgreSQL.
const (
	// oldest is the first version that everything here was tried on, in the way
	// that server_version_num counts.
	oldest = 15_00_00
	// pool is how many connections there are for changes, and as many again for
	// reading. Changes wait for each other anyway, in the order of arrival.
	pool = 4
	// connLife ends connections now and then, so that they follow a name that
	// moved to another machine.
	connLife = 30 * time.Minute
)

// A postgres is the engine of a database on a PostgreSQL server.
type postgres struct {
	target
	clock  clock.Clock
	logger *slog.Logger

	// holder is who has the database while this process does, who the same for
	// people.
	holder, who string
	// keep is the one connection that the hold is kept by: it never waits for
	// those that change something.
	keep *sql.DB
}

func (p *postgres) open(ctx context.Context) (write, read *sql.DB, err error) {
	p.warn()
	p.keep = p.pool(1, nil)
	if err := p.suits(ctx); err != nil {
		return nil, nil, err
	}
	if err := p.take(ctx); err != nil {
		return nil, nil, err
	}
	// As with SQLite, what reads cannot write.
	return p.pool(pool, nil), p.pool(pool, map[string]string{"default_transaction_read_only": "on"}), nil
}

// pool is a pool of size connections with some more parameters.
func (p *postgres) pool(size int, more map[string]string) *sql.DB {
	cfg := *p.config
	cfg.RuntimeParams = maps.Clone(cfg.RuntimeParams)
	maps.Copy(cfg.RuntimeParams, more)
	// Each connection is asked before it is used, so that a server that was
	// started again is noticed before a statement is lost to it.
	ask := func(context.Context, stdlib.ShouldPingParams) bool { return true }
	db := sql.OpenDB(stdlib.GetConnector(cfg, stdlib.OptionShouldPing(ask)))
	db.SetMaxOpenConns(size)
	db.SetMaxIdleConns(size)
	db.SetConnMaxLifetime(connLife)
	return db
}

// warn says what about the URL is not as it should be, and works.
func (p *postgres) warn() {
	if p.unsafe != "" {
		p.logger.Warn("the connection to the database is not protected", "database", p.String(), "reason", p.unsafe)
	}
	if p.shown {
		p.logger.Warn("every user of this machine can read the password in the database's URL; PGPASSFILE keeps it in a file", "database", p.String())
	}
}

// suits refuses a server that Parley was not tried on, or would lose text on.
func (p *postgres) suits(ctx context.Context) error {
	var version int
	var product, encoding, fsync string
	var standby bool
	if err := p.keep.QueryRowContext(ctx, `SELECT CAST(current_setting('server_version_num') AS BIGINT), version(),
		current_setting('server_encoding'), current_setting('fsync'), pg_is_in_recovery()`).Scan(&version, &product, &encoding, &fsync, &standby); err != nil {
		return err
	}
	if fsync != "on" {
		p.logger.Warn("the database server does not wait for its disk (fsync): a power cut loses what was acknowledged", "database", p.String())
	}
	if standby {
		return p.readOnly(errors.New("it is a standby"))
	}
	if err := p.fit(version, product, encoding); err != nil {
		return err
	}
	// Before anything is made beside them.
	var foreign string
	err := p.keep.QueryRowContext(ctx, `SELECT COALESCE(MIN(tablename), '') FROM pg_tables
		WHERE schemaname = current_schema() AND tablename <> 'lease' AND to_regclass('migration') IS NULL`).Scan(&foreign)
	if err == nil && foreign != "" {
		return p.occupied(fmt.Errorf("one is called %q", foreign))
	}
	return err
}

func (p *postgres) fit(version int, product, encoding string) error {
	switch {
	case !strings.HasPrefix(product, "PostgreSQL "):
		return fault.New(fault.StoreUnfit, "use PostgreSQL 15 or newer", "the server of the database %s is no PostgreSQL: %.60s", p, product)
	case version < oldest:
		return fault.New(fault.StoreUnfit, "use PostgreSQL 15 or newer", "the server of the database %s is too old: PostgreSQL %d", p, version/10_000)
	case encoding != "UTF8":
		return fault.New(fault.StoreUnfit, "make one that is: createdb --encoding UTF8 --template template0 "+p.config.Database,
			"the database %s is not in UTF-8 but in %s", p, encoding)
	}
	return nil
}

func (p *postgres) local() bool { return false }

// patient implements engine.
func (p *postgres) patient(ctx context.Context, tx *sql.Tx) error {
	_, err := tx.ExecContext(ctx, `SET LOCAL statement_timeout = 0`)
	return err
}

// again implements engine: what collided with another transaction was rolled back
// (postgresql.org/docs/current/mvcc-serialization-failure-handling.html).
func (p *postgres) again(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == codeSerialization || pg.Code == codeDeadlock)
}

// scrub implements engine, and leaves it to the database: what was there is gone
// from its files when they are vacuumed, which is for its administrator to choose.
func (p *postgres) scrub(context.Context, *sql.DB) error { return nil }

// close implements engine.
func (p *postgres) close() error {
	if p.keep == nil {
		return nil
	}
	p.release()
	return p.keep.Close()
}

// A target is where a database is, as its URL says.
type target struct {
	config *pgx.ConnConfig
	// unsafe is the reason that was given for a connection without protection.
	unsafe string
	// shown says that the password stands in the URL.
	shown bool
}

// String implements engine.
func (t target) String() string {
	hosts := []string{address(t.config.Host, t.config.Port)}
	for _, f := range t.config.Fallbacks {
		if a := address(f.Host, f.Port); a != hosts[len(hosts)-1] {
			hosts = append(hosts, a)
		}
	}
	return fmt.Sprintf("%s on %s", t.config.Database, strings.Join(hosts, ", "))
}

func address(host string, port uint16) string {
	_, a := pgconn.NetworkAddress(host, port)
	return a
}
