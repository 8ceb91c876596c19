package store

import (
	"cmp"
	"context"
	"database/sql"
	"fmt"
	"slices"
	"time"

	"github.com/parleymesh/parley/internal/audit"
	"github.com/parleymesh/parley/internal/control"
	"github.com/parleymesh/parley/internal/enrol"
	"github.com/parleymesh/parley/internal/identity"
)

// Issue implements enrol.Registry; control.ErrConflict if the serial is there already.
func (s *Store) Issue(ctx context.Context, r enrol.Record, e *audit.Event) error {
	return s.update(ctx, "record "+r.Kind+" "+r.Serial, func(tx *sql.Tx) error {
		done, err := tx.ExecContext(ctx, `INSERT INTO certificate (serial, kind, id, not_before, not_after, fingerprint, host)
			VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (serial) DO NOTHING`,
			r.Serial, r.Kind, r.ID.String(), micro(r.NotBefore), micro(r.NotAfter), r.Fingerprint, text(r.Host))
		if err := oneRow(done, err, control.ErrConflict); err != nil {
			return err
		}
		return s.record(ctx, tx, e)
	})
}

// Refused implements enrol.Registry.
func (s *Store) Refused(ctx context.Context, e *audit.Event) error { return s.Log(ctx, e) }

// Certificates are those that were issued and have not ended at now, by identity
// and then oldest first.
func (s *Store) Certificates(ctx context.Context, now time.Time) ([]enrol.Record, error) {
	all, err := list(ctx, s.read, func(rows *sql.Rows) (r enrol.Record, err error) {
		var id string
		var notBefore, notAfter int64
		if err := rows.Scan(&r.Serial, &r.Kind, &id, &notBefore, &notAfter, &r.Fingerprint, &r.Host); err != nil {
			return r, err
		}
		if r.ID, err = identity.ParseID(id); err != nil {
			return r, fmt.Errorf("certificate %s: %w", r.Serial, err)
		}
		r.NotBefore, r.NotAfter = fromMicro(notBefore), fromMicro(notAfter)
		return r, nil
	}, `SELECT serial, kind, id, not_before, not_after, fingerprint, host FROM certificate
		WHERE not_after >= $1`, micro(now))
	// By their bytes, here: each database has an order of text of its own.
	slices.SortFunc(all, func(a, b enrol.Record) int {
		return cmp.Or(cmp.Compare(a.ID.String(), b.ID.String()), a.NotBefore.Compare(b.NotBefore), cmp.Compare(a.Serial, b.Serial))
	})
	return all, s.explain("list certificates", err)
}
