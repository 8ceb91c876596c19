package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/parleymesh/parley/internal/fault"
)

// A hold lasts for leaseTime from its last renewal, by the database's clock: so
// long a server that was killed stands in the way of the next.
const (
	leaseTime  = 6 * time.Second
	leaseRenew = leaseTime / 3
	leaseLook  = leaseTime / 24
)

// createLease is no migration: nothing may be migrated before the database is
// held. holder is unique so that a change of it is one of a key: it waits for every
// transaction that entered, which a renewal does not
// (postgresql.org/docs/current/explicit-locking.html, 13.3.2).
const createLease = `CREATE TABLE IF NOT EXISTS lease (
	name TEXT PRIMARY KEY, holder TEXT NOT NULL UNIQUE, who TEXT NOT NULL, expires BIGINT NOT NULL)`

// present is the database's time in microseconds. It goes on within a statement.
const present = `CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000000 AS BIGINT)`

// take makes the database this process's. A hold that nobody renews is waited for
// until it ends, one that is renewed is a server's that lives.
func (p *postgres) take(ctx context.Context) error {
	if err := p.createLease(ctx); err != nil {
		return err
	}
	seen := lease{}
	for {
		done, err := p.keep.ExecContext(ctx, `INSERT INTO lease (name, holder, who, expires) VALUES ('server', $1, $2, `+present+` + $3)
			ON CONFLICT (name) DO UPDATE SET holder = excluded.holder, who = excluded.who, expires = `+present+` + $3
			WHERE lease.expires < `+present, p.holder, p.who, leaseTime.Microseconds())
		if err != nil {
			return err
		}
		if n, err := done.RowsAffected(); n == 1 || err != nil {
			return err
		}
		l, err := readLease(ctx, p.keep)
		switch {
		case err != nil:
			return err
		case seen.holder != "" && seen != l:
			return p.busy(l, "stop it, or give this one a database of its own")
		}
		seen = l
		if err := p.clock.Sleep(ctx, leaseLook); err != nil {
			return err
		}
	}
}

// createLease makes the table. Of two servers that do so at once, one fails.
func (p *postgres) createLease(ctx context.Context) error {
	for try := 1; ; try++ {
		_, err := p.keep.ExecContext(ctx, createLease)
		var pg *pgconn.PgError
		if try == maxTries || !errors.As(err, &pg) || !slices.Contains([]string{codeUnique, codeDuplicateObject, codeDuplicateTable}, pg.Code) {
			return err
		}
		if err := p.clock.Sleep(ctx, leaseLook); err != nil {
			return err
		}
	}
}

// A lease is who has the database, and until when.
type lease struct {
	holder, who string
	expires     int64
}

func readLease(ctx context.Context, db interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
},
) (l lease, err error) {
	err = db.QueryRowContext(ctx, `SELECT holder, who, expires FROM lease WHERE name = 'server'`).Scan(&l.holder, &l.who, &l.expires)
	if errors.Is(err, sql.ErrNoRows) {
		return lease{who: "nobody"}, nil
	}
	return l, err
}

func (p *postgres) busy(l lease, hint string) error {
	return fault.New(fault.StoreBusy, hint, "another server holds the database %s: %s", p, l.who)
}

// enter implements engine. The lock on the row is what whoever would take the
// database waits for.
func (p *postgres) enter(ctx context.Context, tx *sql.Tx) error {
	var one int
	err := tx.QueryRowContext(ctx, `SELECT 1 FROM lease WHERE name = 'server' AND holder = $1 FOR KEY SHARE`, p.holder).Scan(&one)
	if !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	return p.taken(ctx, tx)
}

// taken is why the hold is not this process's any more.
func (p *postgres) taken(ctx context.Context, db interface {
	QueryRowContext(context.Context, string, ...any) *sql.Row
},
) error {
	l, err := readLease(ctx, db)
	if err != nil {
		return err
	}
	return p.busy(l, "this server was cut off from the database, or stood still, for longer than "+leaseTime.String()+"; let one of the two run, nothing was changed")
}

// hold implements engine. While the database does not answer nobody can take it
// either, so that is waited out.
func (p *postgres) hold(ctx context.Context) error {
	away := false
	for p.clock.Sleep(ctx, leaseRenew) == nil {
		err := p.renew(ctx)
		var f *fault.Fault
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.As(err, &f) && f.Code == fault.StoreBusy:
			return err
		case err != nil && !away:
			p.logger.Warn("the database does not answer", "database", p.String(), "error", p.explain(err))
		case err == nil && away:
			p.logger.Warn("the database answers again", "database", p.String())
		}
		away = err != nil
	}
	return nil
}

func (p *postgres) renew(ctx context.Context) error {
	ctx, done := context.WithTimeout(ctx, leaseRenew)
	defer done()
	changed, err := p.keep.ExecContext(ctx, `UPDATE lease SET expires = `+present+` + $1 WHERE name = 'server' AND holder = $2`, leaseTime.Microseconds(), p.holder)
	if err != nil {
		return err
	}
	if n, err := changed.RowsAffected(); n == 1 || err != nil {
		return err
	}
	return p.taken(ctx, p.keep)
}

// release lets the next server in at once. Where that fails the hold ends by
// itself.
func (p *postgres) release() {
	ctx, done := context.WithTimeout(context.Background(), leaseRenew)
	defer done()
	if _, err := p.keep.ExecContext(ctx, `UPDATE lease SET expires = 0 WHERE name = 'server' AND holder = $1`, p.holder); err != nil {
		p.logger.Debug("the hold on the database ends by itself", "error", p.explain(err))
	}
}

// describe is who this process is, for people.
func describe(host string, now time.Time) string {
	return fmt.Sprintf("%s, process %d, since %s", text(host), os.Getpid(), now.UTC().Format(time.RFC3339))
}
